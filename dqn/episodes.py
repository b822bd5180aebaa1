"""Episodes across cycles: what each lane has played since its reset, and which episodes ended."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dqn.experience import Experience


@dataclass(frozen=True)
class LaneHistory:
    """The episode that one lane is in; with the run's seed, enough to restore its game exactly."""

    episode: int
    actions: np.ndarray  # (steps since the reset,) uint8
    score: float = 0.0


@dataclass(frozen=True)
class FinishedEpisode:
    """An episode that ended or was cut off, after `states` states of the whole run."""

    episode: int
    states: int
    score: float
    steps: int


def first_histories(lanes: int) -> list[LaneHistory]:
    """Every lane at the reset of its first episode. Lane l of L plays episodes l, l + L, l + 2L, …"""
    return [LaneHistory(lane, np.zeros(0, np.uint8)) for lane in range(lanes)]


def follow(
    histories: list[LaneHistory], experience: Experience, states: int
) -> tuple[list[LaneHistory], list[FinishedEpisode]]:
    """Carry the lanes' histories over `experience`, which starts after `states` states of the run.

    Returns:
        The histories after its last step, and the episodes that ended in it, in the order they ended.
    """
    steps, lanes = experience.actions.shape
    assert len(histories) == lanes
    after, finished = [], []
    for lane, history in enumerate(histories):
        actions, rewards = experience.actions[:, lane], experience.rewards[:, lane]
        truncated = experience.truncated[:, lane]
        start = 0
        for end in np.flatnonzero(experience.terminated[:, lane] | truncated):
            played = slice(start, end if truncated[end] else end + 1)
            length = len(history.actions) + played.stop - played.start
            score = history.score + float(rewards[played].sum(dtype=np.float64))
            at = states + int(end) * lanes + lane + 1
            finished.append(FinishedEpisode(history.episode, at, score, length))
            history = LaneHistory(history.episode + lanes, np.zeros(0, np.uint8))
            start = int(end) + 1
        score = history.score + float(rewards[start:].sum(dtype=np.float64))
        after.append(LaneHistory(history.episode, np.concatenate([history.actions, actions[start:]]), score))
    return after, sorted(finished, key=lambda episode: episode.states)
