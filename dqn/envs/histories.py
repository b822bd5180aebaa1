"""Episodes across cycles: what each lane has played since it was seeded, and which episodes ended."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dqn.config import TrainConfig
from dqn.envs.experience import Experience
from dqn.randomness import generator

# Seeding an emulator takes it as long as some 500 steps, and restoring a lane means playing again all
# its steps since it was seeded. So a lane is seeded anew at the first reset after this many steps.
SEEDED_STEPS = 5_000

MIDGAME_CYCLES = 16  # from one start in mid-game to the next
MIDGAME_STEPS = 1_000  # most that are played again to come there, for the lanes that start together wait for it


@dataclass(frozen=True)
class LaneHistory:
    """Where one lane stands; with the run's seed, enough to restore its game exactly.

    The seed belongs to the episode `seeded_episode`; later episodes go on with the emulator's own
    random numbers. `actions` has one entry for each step since then, truncated ones included.
    An episode that started in mid-game has no score: NaN.
    """

    episode: int
    seeded_episode: int
    actions: np.ndarray  # (steps since it was seeded,) uint8
    score: float = 0.0  # of the episode so far
    steps: int = 0  # of the episode so far


@dataclass(frozen=True)
class FinishedEpisode:
    """An episode that ended or was cut off, after `states` states of the whole run."""

    episode: int
    states: int
    score: float
    steps: int


def first_histories(lanes: int) -> list[LaneHistory]:
    """Every lane at the reset of its first episode. Lane l of L plays episodes l, l + L, l + 2L, …"""
    return [LaneHistory(lane, lane, np.zeros(0, np.uint8)) for lane in range(lanes)]


def starts_in_midgame(config: TrainConfig, cycle: int) -> bool:
    """Whether the last lanes start in mid-game after `cycle`."""
    return config.midgame_lanes > 0 and cycle % MIDGAME_CYCLES == 0


def midgame_starts(histories: list[LaneHistory], config: TrainConfig, cycle: int) -> list[LaneHistory]:
    """Histories after `cycle`, where it is time with others for `midgame_lanes`.

    Each takes over what one of the other lanes has played, up to a random step, and so goes on from a state that this
    lane has been in: the same seed and actions lead to the same state. There it is in an episode of its own.
    """
    if not starts_in_midgame(config, cycle):
        return histories
    first, draws = config.first_midgame_lane, generator(config.seed, "mid-game", cycle)
    after = histories[:first]
    for history in histories[first:]:
        source = histories[draws.integers(first)]
        steps = int(draws.integers(min(len(source.actions), MIDGAME_STEPS) + 1))
        episode = history.episode + config.lanes
        after.append(LaneHistory(episode, source.seeded_episode, source.actions[:steps], float("nan"), steps))
    return after


def advance(
    histories: list[LaneHistory], experience: Experience, states: int
) -> tuple[list[LaneHistory], list[FinishedEpisode]]:
    """Carry the lanes' histories over `experience`, which starts after `states` states of the run.

    Returns:
        The histories after its last step, and the episodes that ended in it, in the order they ended, without
        those that started in mid-game.
    """
    after, finished = [], []
    for lane, history in enumerate(histories):
        history, episodes = _advance_lane(history, experience, lane, states)
        after.append(history)
        finished += episodes
    whole = [episode for episode in finished if not np.isnan(episode.score)]
    return after, sorted(whole, key=lambda episode: episode.states)


def _advance_lane(
    history: LaneHistory, experience: Experience, lane: int, states: int
) -> tuple[LaneHistory, list[FinishedEpisode]]:
    lanes = experience.actions.shape[1]
    actions, rewards = experience.actions[:, lane], experience.rewards[:, lane]
    truncated = experience.truncated[:, lane]
    episode, seeded = history.episode, history.seeded_episode
    played = [history.actions]
    score, steps, start = history.score, history.steps, 0
    finished = []
    for end in np.flatnonzero(experience.terminated[:, lane] | truncated):
        rows = slice(start, int(end) + 1)
        score += float(rewards[rows].sum(dtype=np.float64))
        steps += rows.stop - rows.start - int(truncated[end])
        finished.append(FinishedEpisode(episode, states + int(end) * lanes + lane + 1, score, steps))
        episode += lanes
        played.append(actions[rows])
        if sum(map(len, played)) >= SEEDED_STEPS:
            seeded, played = episode, []
        score, steps, start = 0.0, 0, rows.stop
    score += float(rewards[start:].sum(dtype=np.float64))
    steps += len(actions) - start
    since = np.concatenate([*played, actions[start:]]).astype(np.uint8)
    return LaneHistory(episode, seeded, since, score, steps), finished
