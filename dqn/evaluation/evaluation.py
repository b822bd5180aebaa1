"""Play complete episodes with a fixed network, and summarize their scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from threading import Event, Lock
from typing import Any

import numpy as np
from pydantic import ConfigDict, TypeAdapter

from dqn.config import TrainConfig
from dqn.envs.games import GameSettings, game_title
from dqn.envs.histories import first_histories
from dqn.envs.lanes import Lanes, Outcome
from dqn.envs.policy import epsilon_greedy
from dqn.evaluation.human_scores import human_normalized
from dqn.metrics import Metric
from dqn.randomness import generator
from dqn.threads import run_in_threads

BOOTSTRAP_SAMPLES = 10_000
# With few lanes, each plays several episodes, so that all lanes end at about the same time, and few emulators have to
# be seeded.
LANES, GROUPS = 10, 2


@dataclass(frozen=True)
class Protocol:
    """How an agent is evaluated. It determines the seeds of the games and the random draws of the policy.

    Raises:
        ValueError: a field is out of range.
    """

    game: str
    episodes: int
    epsilon: float  # probability of a random action
    seed: int = 0

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ValueError(f"episodes is {self.episodes}; it must be at least 1")
        if not 0 <= self.epsilon <= 1:
            raise ValueError(f"epsilon is {self.epsilon}; it must be a probability from 0 to 1")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; it must be from 0 to 2**63 - 1")

    @classmethod
    def of(cls, config: TrainConfig) -> Protocol:
        """The protocol by which a run with this configuration is evaluated during training."""
        return cls(config.game, config.evaluation_episodes, config.evaluation_epsilon)

    def __str__(self) -> str:
        return f"{game_title(self.game)}-{self.episodes}x{self.epsilon:g}-seed{self.seed}"


@dataclass(frozen=True)
class Evaluation:
    """Results of complete episodes, by episode number."""

    protocol: Protocol
    scores: list[float]  # sums of unclipped rewards
    steps: list[int]  # of each episode
    cut_off: int  # number of episodes that reached the time limit

    __pydantic_config__ = ConfigDict(allow_inf_nan=False)

    def summary(self) -> dict[str, float]:
        """Statistics of the scores: mean, median, sd, min and max.

        `mean_low` and `mean_high` are the 95 % percentile bootstrap interval of the mean, `sd` is the sample standard
        deviation, and `human_normalized` is the normalized mean, for games with published human scores.
        """
        scores = np.array(self.scores)
        draws = generator(self.protocol.seed, "bootstrap").integers(len(scores), size=(BOOTSTRAP_SAMPLES, len(scores)))
        low, high = np.percentile(scores[draws].mean(axis=1), [2.5, 97.5])
        human = human_normalized(self.protocol.game, float(scores.mean()))
        return {
            "mean": float(scores.mean()),
            "mean_low": float(low),
            "mean_high": float(high),
            "median": float(np.median(scores)),
            "sd": float(scores.std(ddof=1)) if len(scores) > 1 else 0.0,
            "min": float(scores.min()),
            "max": float(scores.max()),
            **({} if human is None else {"human_normalized": human}),
        }

    def metrics(self, name: str, states: int) -> list[Metric]:
        """The summary as metrics `name`/…, for a network that was trained on `states` states."""
        figures = {**self.summary(), "cut_off": self.cut_off, "steps": float(np.mean(self.steps))}
        return [Metric(f"{name}/{figure}", states, value) for figure, value in figures.items()]

    def as_dict(self) -> dict[str, Any]:
        """All fields and the summary, ready for JSON."""
        record = asdict(self)
        return {**record.pop("protocol"), **self.summary(), **record}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Evaluation:
        """The inverse of `as_dict`. Other entries of `record` are ignored.

        Raises:
            KeyError: an entry is missing.
            ValueError: the entries are not those of an evaluation.
        """
        protocol = {name: record[name] for name in ("game", "episodes", "epsilon", "seed")}
        results = {name: record[name] for name in ("scores", "steps", "cut_off")}
        found = _EVALUATION.validate_python({"protocol": protocol, **results})
        if not len(found.scores) == len(found.steps) == found.protocol.episodes:
            raise ValueError(f"it has {len(found.scores)} scores of {found.protocol.episodes} episodes")
        return found


_EVALUATION = TypeAdapter(Evaluation)


def evaluation_groups(protocol: Protocol, config: TrainConfig, threads: int) -> list[Callable[[], Lanes]]:
    """Functions, each of which opens one group of lanes for an evaluation.

    The groups do not depend on `threads`, because each of them has its own random draws of the policy.

    Args:
        protocol: of the evaluation.
        config: of the agent, for the settings of its games.
        threads: CPU threads of all groups together.

    Raises:
        ValueError: the game of `protocol` is unknown.
    """
    settings, histories = game_settings(protocol, config), first_histories(min(protocol.episodes, LANES))
    size = -(-len(histories) // GROUPS)
    open_group = partial(Lanes, settings, total_lanes=len(histories), threads=max(1, threads // GROUPS))
    return [partial(open_group, histories[first : first + size]) for first in range(0, len(histories), size)]


def game_settings(protocol: Protocol, config: TrainConfig) -> GameSettings:
    """The settings of an evaluation's games. Their seed differs from that of a training run with `protocol.seed`."""
    seed = int(generator(protocol.seed, "evaluation games").integers(2**63))
    return GameSettings.of(config, protocol.game, seed)


def policy_draws(protocol: Protocol, group: int = 0) -> np.random.Generator:
    """The random generator of the policy for a group of an evaluation."""
    return generator(protocol.seed, "evaluation", group)


def play_episodes(
    groups: Sequence[Callable[[], Lanes]],
    estimate: Callable[[np.ndarray], np.ndarray],
    protocol: Protocol,
    threads: int = 1,
    on_step: Callable[[int, int], None] = lambda done, episodes: None,
) -> Evaluation:
    """Play the complete episodes of a protocol with an epsilon-greedy policy.

    Episodes 0 to `episodes` - 1 are evaluated, in whatever order they end. Short episodes would be
    over-represented if the first ones to end were evaluated.

    Args:
        groups: functions that open new lanes, from `evaluation_groups`; at most one lane for each episode.
        estimate: maps states (N, 105, 80, C) uint8 to Q-values (N, A) float32; called from all threads.
        protocol: number of episodes, epsilon, and seed of the policy's draws.
        threads: groups that play at the same time; the result does not depend on it.
        on_step: called with the number of episodes done and `episodes`, after each step.
    """
    results, reporting = _EpisodeResults(protocol.episodes), Lock()

    def play_group(group: int, stopped: Event) -> None:
        lanes, draws = groups[group](), policy_draws(protocol, group)
        try:
            while not stopped.is_set() and (active := lanes.episodes < protocol.episodes).any():
                episodes = lanes.episodes[active]
                # All lanes of a group step together. Q-values are estimated only for those whose episode counts.
                estimates = estimate(lanes.states if active.all() else lanes.states[active])
                q_values = np.zeros((len(active), estimates.shape[1]), np.float32)
                q_values[active] = estimates
                outcome = lanes.step(lanes.with_noops(epsilon_greedy(q_values, protocol.epsilon, draws)))
                results.add(episodes, outcome, active)
                with reporting:
                    on_step(int(results.over.sum()), protocol.episodes)
        finally:
            lanes.close()

    run_in_threads([partial(play_group, group) for group in range(len(groups))], threads, torch_threads=1)
    assert results.over.all()
    return Evaluation(protocol, results.scores.tolist(), results.steps.tolist(), int(results.cut_off.sum()))


class _EpisodeResults:
    """Results of all episodes, by episode number. Groups add to different episodes, so no lock is needed."""

    def __init__(self, episodes: int) -> None:
        self.scores, self.steps = np.zeros(episodes), np.zeros(episodes, np.int64)
        self.cut_off, self.over = np.zeros(episodes, bool), np.zeros(episodes, bool)

    def add(self, episodes: np.ndarray, outcome: Outcome, active: np.ndarray) -> None:
        """Add a step of the lanes in `active` (L,) bool, which play `episodes`."""
        truncated = outcome.truncated[active]
        self.scores[episodes] += outcome.rewards[active]
        self.steps[episodes] += ~truncated
        self.cut_off[episodes] |= truncated
        self.over[episodes] = outcome.terminated[active] | truncated


def interquartile_mean(strata: list[np.ndarray]) -> tuple[float, float, float]:
    """Interquartile mean of the scores of episodes, with its 95 % stratified bootstrap interval.

    `strata` are the scores of each seed or game; all strata have the same weight.
    Returns the mean, and the low and the high end of the interval.
    Source: Agarwal et al. 2021, Deep Reinforcement Learning at the Edge of the Statistical Precipice.
    """
    from scipy import stats  # imported here, because it takes 0.3 seconds

    size = int(np.lcm.reduce([len(scores) for scores in strata]))

    def of_pool(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
        pool = [np.repeat(scores, size // scores.shape[axis], axis) for scores in samples]
        middle: np.ndarray = stats.trim_mean(np.concatenate(pool, axis), 0.25, axis)
        return middle

    found = stats.bootstrap(strata, of_pool, n_resamples=BOOTSTRAP_SAMPLES, batch=500, method="percentile", rng=0)
    low, high = map(float, found.confidence_interval)
    return float(of_pool(*strata)), low, high
