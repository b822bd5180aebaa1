"""Moments of a cycle worth looking at, found in its stored experience."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dqn.envs.experience import Experience


@dataclass(frozen=True)
class Highlight:
    """A state of one lane, and the steps of the same episode around it."""

    name: str  # what happens there
    lane: int
    step: int
    steps: range  # to show: consecutive, with `step` among them


# By name: where the steps shown begin and end, from the highlight's own
_KINDS = {
    "highest reward": (-6, 3),
    "highest Q-value": (-2, 7),
    "life lost": (-8, 1),
    "largest spread of Q-values": (-2, 7),
    "smallest spread of Q-values": (-2, 7),
}


def find_highlights(experience: Experience) -> tuple[list[Highlight], list[str]]:
    """The highlights that the cycle has, and the names of those it lacks, such as a lost life.

    Of states that are equally good, the one with the most steps of its episode around it is taken.
    Truncated rows, where nothing was played, are none.
    """
    highest = experience.q_values.max(axis=2)
    spread = highest - experience.q_values.min(axis=2)
    lost = experience.life_lost | experience.terminated
    worth = {
        "highest reward": np.where(experience.rewards > 0, experience.rewards, -np.inf),
        "highest Q-value": highest,
        "life lost": np.where(lost, 0.0, -np.inf),
        "largest spread of Q-values": spread,
        "smallest spread of Q-values": -spread,
    }
    found, missing = [], []
    for name, (before, after) in _KINDS.items():
        value = np.where(experience.truncated, -np.inf, worth[name])
        if np.isneginf(value.max()):
            missing.append(name)
            continue
        candidates = np.argwhere(value == value.max())
        highlights = [_around(experience, name, lane, step, before, after) for step, lane in candidates.tolist()[:500]]
        best = max(highlights, key=lambda highlight: len(highlight.steps))
        # What the episode or the cycle lacks on one side is shown on the other.
        early, late = best.steps[0] - (best.step + before), best.step + after - best.steps[-1]
        found.append(_around(experience, name, best.lane, best.step, before - late, after + early))
    return found, missing


def _around(experience: Experience, name: str, lane: int, step: int, before: int, after: int) -> Highlight:
    same = experience.episode[:, lane] == experience.episode[step, lane]
    first, last = max(0, step + before), min(experience.steps - 1, step + after)
    while not same[first]:
        first += 1
    while not same[last]:
        last -= 1
    return Highlight(name, lane, step, range(first, last + 1))


def stretch_to_a_point(experience: Experience, most_steps: int = 40) -> Highlight | None:
    """The longest stretch of play without reward or loss that ends in a positive reward, if there is a reward.

    Its `step` is where the reward was earned; a few steps after it are shown, too.
    """
    ends = experience.life_lost | experience.terminated | experience.truncated
    quiet = np.zeros(experience.actions.shape[1], np.int64)  # steps since something happened in the lane
    best: tuple[int, int, int] | None = None
    for step in range(experience.steps):
        for lane in np.flatnonzero(experience.rewards[step] > 0).tolist():
            length = min(int(quiet[lane]), most_steps)
            if best is None or length > best[0]:
                best = length, lane, step
        quiet = np.where(ends[step] | (experience.rewards[step] != 0), 0, quiet + 1)
    if best is None:
        return None
    length, at_lane, at_step = best
    return _around(experience, "a stretch of play that ends in a point", at_lane, at_step, -length, 6)
