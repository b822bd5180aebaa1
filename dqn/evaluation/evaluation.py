"""Complete episodes with a fixed network, and what their scores say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from threading import Event, Lock
from typing import Any

import numpy as np

from dqn.config import TrainConfig
from dqn.envs.games import GameSettings, game_title
from dqn.envs.histories import first_histories
from dqn.envs.lanes import Lanes
from dqn.envs.policy import epsilon_greedy
from dqn.evaluation.human_scores import human_normalized
from dqn.metrics import Metric
from dqn.randomness import generator
from dqn.threads import run_in_threads

BOOTSTRAP_SAMPLES = 10_000
# Few lanes with several episodes each are done at nearly the same time, and few emulators have to be seeded.
LANES, GROUPS = 10, 2


@dataclass(frozen=True)
class Protocol:
    """How an agent is evaluated. The same protocol is the same games and the same draws."""

    game: str
    episodes: int
    epsilon: float  # probability of a random action
    seed: int = 0

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ValueError(f"episodes is {self.episodes}; it must be at least 1")
        if not 0 <= self.epsilon <= 1:
            raise ValueError(f"epsilon is {self.epsilon}; a probability is from 0 to 1")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; it must be from 0 to 2**63 - 1")

    @classmethod
    def of(cls, config: TrainConfig) -> Protocol:
        """The one by which a run of this configuration is evaluated while it trains."""
        return cls(config.game, config.evaluation_episodes, config.evaluation_epsilon)

    def __str__(self) -> str:
        return f"{game_title(self.game)}-{self.episodes}x{self.epsilon:g}-seed{self.seed}"


@dataclass(frozen=True)
class Evaluation:
    """Scores of complete episodes, in the order of their seeds."""

    protocol: Protocol
    scores: list[float]
    steps: list[int]  # of each episode
    cut_off: int  # episodes that hit the time limit

    def summary(self) -> dict[str, float]:
        """Mean with its 95 % bootstrap interval, median, sample sd, min and max of the scores.

        Where human scores are published also `human_normalized`, of the mean.
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
        """The summary as metrics below `name`, of the network after `states` states."""
        figures = {**self.summary(), "cut_off": self.cut_off, "steps": float(np.mean(self.steps))}
        return [Metric(f"{name}/{figure}", states, value) for figure, value in figures.items()]

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        record = asdict(self)
        return {**record.pop("protocol"), **self.summary(), **record}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Evaluation:
        """The inverse of `as_dict`."""
        protocol = Protocol(**{name: record[name] for name in ("game", "episodes", "epsilon", "seed")})
        return cls(protocol, **{name: record[name] for name in ("scores", "steps", "cut_off")})


def evaluation_groups(protocol: Protocol, config: TrainConfig, threads: int) -> list[Callable[[], Lanes]]:
    """How to open each group of an evaluation's games; never those that a training of that seed plays.

    The groups are the same whatever the number of threads, for the policy's draws belong to them.
    """
    settings, histories = game_settings(protocol, config), first_histories(min(protocol.episodes, LANES))
    size = -(-len(histories) // GROUPS)
    open_group = partial(Lanes, settings, total_lanes=len(histories), threads=max(1, threads // GROUPS))
    return [partial(open_group, histories[first : first + size]) for first in range(0, len(histories), size)]


def game_settings(protocol: Protocol, config: TrainConfig) -> GameSettings:
    """The settings of an evaluation's games; its seed is another one than that of a training with `protocol.seed`."""
    seed = int(generator(protocol.seed, "evaluation games").integers(2**63))
    return GameSettings.of(config, protocol.game, seed)


def policy_draws(protocol: Protocol, group: int = 0) -> np.random.Generator:
    """The random draws of the policy in a group of an evaluation's games."""
    return generator(protocol.seed, "evaluation", group)


def play_episodes(
    groups: Sequence[Callable[[], Lanes]],
    estimate: Callable[[np.ndarray], np.ndarray],
    protocol: Protocol,
    threads: int = 1,
    on_step: Callable[[int, int], None] = lambda done, episodes: None,
) -> Evaluation:
    """Play the protocol's complete episodes, epsilon-greedy.

    Which episodes are played is fixed beforehand, number 0 up to `episodes`, whichever end first:
    counting the first to finish would favour short ones.

    Args:
        groups: each opens freshly started games; of all lanes together there is one at most for each episode.
        estimate: states (N, 105, 80, C) uint8 to Q-values (N, A) float32; called by all threads.
        protocol: how many episodes, and the policy's epsilon and seed.
        threads: groups that play at the same time; the scores do not depend on it.
        on_step: told the episodes done and to do.
    """
    episodes = protocol.episodes
    scores, steps = np.zeros(episodes), np.zeros(episodes, np.int64)
    cut_off, over, telling = np.zeros(episodes, bool), np.zeros(episodes, bool), Lock()

    def play_group(group: int, stopped: Event) -> None:
        lanes, draws = groups[group](), policy_draws(protocol, group)
        try:
            while not stopped.is_set() and (wanted := lanes.episodes < episodes).any():
                playing = lanes.episodes[wanted]
                # Lanes that are done go on, for the emulators step together; nobody asks what they should do.
                estimates = estimate(lanes.states if wanted.all() else lanes.states[wanted])
                q_values = np.zeros((len(wanted), estimates.shape[1]), np.float32)
                q_values[wanted] = estimates
                outcome = lanes.step(lanes.with_noops(epsilon_greedy(q_values, protocol.epsilon, draws)))
                scores[playing] += outcome.rewards[wanted]
                steps[playing] += ~outcome.truncated[wanted]
                cut_off[playing] |= outcome.truncated[wanted]
                over[playing] = (outcome.terminated | outcome.truncated)[wanted]
                with telling:
                    on_step(int(over.sum()), episodes)
        finally:
            lanes.close()

    run_in_threads([partial(play_group, group) for group in range(len(groups))], threads, torch_threads=1)
    assert over.all()
    return Evaluation(protocol, scores.tolist(), steps.tolist(), int(cut_off.sum()))
