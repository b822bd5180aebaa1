"""Complete episodes with a fixed network, and what their scores say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dqn.environments import Lanes
from dqn.policy import epsilon_greedy
from dqn.randomness import generator

BOOTSTRAP_SAMPLES = 10_000


@dataclass(frozen=True)
class Evaluation:
    """Scores of complete episodes, in the order of their seeds."""

    scores: list[float]
    steps: list[int]  # of each episode
    cut_off: int  # episodes that hit the time limit
    epsilon: float
    seed: int

    def summary(self) -> dict[str, float]:
        """Mean with its 95 % bootstrap interval, median, sample sd, min and max of the scores."""
        scores = np.array(self.scores)
        draws = generator(self.seed, "bootstrap").integers(len(scores), size=(BOOTSTRAP_SAMPLES, len(scores)))
        low, high = np.percentile(scores[draws].mean(axis=1), [2.5, 97.5])
        return {
            "mean": float(scores.mean()),
            "mean_low": float(low),
            "mean_high": float(high),
            "median": float(np.median(scores)),
            "sd": float(scores.std(ddof=1)) if len(scores) > 1 else 0.0,
            "min": float(scores.min()),
            "max": float(scores.max()),
        }

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {**self.summary(), "episodes": len(self.scores), **asdict(self)}


def evaluate(
    lanes: Lanes,
    estimate: Callable[[np.ndarray], np.ndarray],
    episodes: int,
    epsilon: float,
    seed: int,
    on_step: Callable[[int, int], None] = lambda done, episodes: None,
) -> Evaluation:
    """Play `episodes` complete episodes, epsilon-greedy.

    Which episodes are played is fixed beforehand, number 0 up to `episodes`, whichever end first:
    counting the first to finish would favour short ones.

    Args:
        lanes: freshly started games, at most one for each episode.
        estimate: states (L, 105, 80, 2) uint8 to Q-values (L, A) float32.
        epsilon: probability of a random action.
        seed: of the policy's draws.
        on_step: told the episodes done and to do.
    """
    assert 1 <= len(lanes.episodes) <= episodes
    draws = generator(seed, "evaluation")
    scores, steps = np.zeros(episodes), np.zeros(episodes, np.int64)
    cut_off, done = np.zeros(episodes, bool), 0
    wanted = lanes.episodes < episodes
    while wanted.any():
        playing = lanes.episodes
        outcome = lanes.step(epsilon_greedy(estimate(lanes.states), epsilon, draws))
        scores[playing[wanted]] += outcome.rewards[wanted]
        steps[playing[wanted]] += ~outcome.truncated[wanted]
        cut_off[playing[wanted]] |= outcome.truncated[wanted]
        done += int((wanted & (outcome.terminated | outcome.truncated)).sum())
        wanted = lanes.episodes < episodes
        on_step(done, episodes)
    return Evaluation(scores.tolist(), steps.tolist(), int(cut_off.sum()), epsilon, seed)
