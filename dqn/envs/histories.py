"""Histories of lanes across cycles, from which their games are restored, and the episodes that finished."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dqn.config import TrainConfig
from dqn.envs.experience import Experience
from dqn.randomness import generator

# A lane is seeded again at its first reset after this many steps. With a larger number, restoring a lane takes
# longer, because all steps since the last seed are replayed. With a smaller number, play takes longer, because
# seeding an emulator takes about as long as 500 steps.
SEEDED_STEPS = 5_000

MIDGAME_CYCLES = 16  # cycles between two mid-game starts
MIDGAME_STEPS = 1_000  # most steps that a mid-game start replays, because all lanes of its group wait for it


@dataclass(frozen=True)
class LaneHistory:
    """What one lane has played. Together with `GameSettings`, it determines the state of the lane's game exactly.

    A lane is one slot of the vector environment, which plays episode after episode. Its emulator was seeded
    for the episode `seeded_episode`; later episodes continue the emulator's random numbers.
    """

    episode: int  # number, in the run, of the episode that the lane plays now
    seeded_episode: int
    actions: np.ndarray  # (N,) uint8: actions of the N rows since the lane was seeded, truncated rows included
    score: float = 0.0  # of the current episode so far; NaN if it started in mid-game
    steps: int = 0  # of the current episode so far


@dataclass(frozen=True)
class FinishedEpisode:
    """An episode that was terminated or truncated."""

    episode: int  # number in the run
    states: int  # states that the run had played when it ended
    score: float
    steps: int


def first_histories(lanes: int) -> list[LaneHistory]:
    """The histories of all lanes of a new run. Lane l of L plays episodes l, l + L, l + 2L, …"""
    return [LaneHistory(lane, lane, np.zeros(0, np.uint8)) for lane in range(lanes)]


def is_midgame_cycle(config: TrainConfig, cycle: int) -> bool:
    """Whether the `midgame_lanes` start from a state of another lane after `cycle`."""
    return config.midgame_lanes > 0 and cycle % MIDGAME_CYCLES == 0


def draw_midgame_starts(histories: list[LaneHistory], config: TrainConfig, cycle: int) -> list[LaneHistory]:
    """Replace the histories of the `midgame_lanes` if `cycle` is a mid-game cycle.

    Each of these lanes copies the history of a random other lane up to a random step. The same seed and actions
    lead to the same state, so the lane starts from a state that the other lane has visited, in a new episode.

    Args:
        histories: of all lanes of the run, after `cycle`.
        config: of the run.
        cycle: number of the cycle that has just ended.
    """
    if not is_midgame_cycle(config, cycle):
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
    """Advance the histories by the experience of one cycle.

    Args:
        histories: of all lanes of the run, before the cycle.
        experience: of the same lanes in the cycle.
        states: number of states that the run had played before the cycle.

    Returns:
        The histories after the cycle, and the episodes that ended in it, in the order in which they ended.
        Episodes that started in mid-game are not among them.
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
