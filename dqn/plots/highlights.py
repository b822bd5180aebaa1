"""Highlights of a cycle: states with an extreme reward or Q-value, found in its stored experience."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dqn.envs.experience import Experience


@dataclass(frozen=True)
class Highlight:
    """A state of one lane, with the steps around it that belong to the same episode."""

    name: str
    lane: int
    step: int
    steps: range  # consecutive steps to show, which contain `step`


# By name, the first and the last step to show, relative to the step of the highlight
_KINDS = {
    "highest reward": (-6, 3),
    "highest Q-value": (-2, 7),
    "life lost": (-8, 1),
    "largest spread of Q-values": (-2, 7),
    "smallest spread of Q-values": (-2, 7),
}


def find_highlights(experience: Experience) -> tuple[list[Highlight], list[str]]:
    """Find one highlight of each kind.

    Of states with an equal value, the one with the most steps to show is selected. Truncated rows are excluded,
    because their action was not played.

    Returns:
        The highlights, and the names of the kinds that do not occur in the cycle, such as a lost life.
    """
    highest = experience.q_values.max(axis=2)
    spread = highest - experience.q_values.min(axis=2)
    lost = experience.life_lost | experience.terminated
    values = {
        "highest reward": np.where(experience.rewards > 0, experience.rewards, -np.inf),
        "highest Q-value": highest,
        "life lost": np.where(lost, 0.0, -np.inf),
        "largest spread of Q-values": spread,
        "smallest spread of Q-values": -spread,
    }
    found, missing = [], []
    for name, (before, after) in _KINDS.items():
        value = np.where(experience.truncated, -np.inf, values[name])
        if np.isneginf(value.max()):
            missing.append(name)
            continue
        candidates = np.argwhere(value == value.max())
        highlights = [_around(experience, name, lane, step, before, after) for step, lane in candidates.tolist()[:500]]
        best = max(highlights, key=lambda highlight: len(highlight.steps))
        # If the episode or the cycle has fewer steps on one side, show more steps on the other side.
        early, late = best.steps[0] - (best.step + before), best.step + after - best.steps[-1]
        found.append(_around(experience, name, best.lane, best.step, before - late, after + early))
    return found, missing


def _around(experience: Experience, name: str, lane: int, step: int, before: int, after: int) -> Highlight:
    """The highlight at `step`, with the steps from `before` to `after`, relative to it, of the same episode."""
    same = experience.episode[:, lane] == experience.episode[step, lane]
    first, last = max(0, step + before), min(experience.steps - 1, step + after)
    while not same[first]:
        first += 1
    while not same[last]:
        last -= 1
    return Highlight(name, lane, step, range(first, last + 1))


def stretch_to_a_point(experience: Experience, most_steps: int = 40) -> Highlight | None:
    """Find the longest sequence of steps without reward, lost life or end of an episode before a positive reward.

    Args:
        experience: of the cycle.
        most_steps: longest sequence to show before the reward.

    Returns:
        A highlight whose `step` is the step of the reward, followed by up to 6 steps; None if the cycle has no
        positive reward.
    """
    ends = experience.life_lost | experience.terminated | experience.truncated
    quiet = np.zeros(experience.actions.shape[1], np.int64)  # steps of each lane since the last such event
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
