"""Speed of play, sweep and optimization without storage, each compared with a limit or with a simple program.

The compared functions take turns, so that a change of the machine's speed affects all of them; each result is the
median of the turns.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.report import Row
from dqn.config import TrainConfig, make_config
from dqn.envs.experience import Experience
from dqn.envs.histories import SEEDED_STEPS, first_histories
from dqn.envs.lanes import Lanes, open_lanes
from dqn.envs.policy import CyclePolicy
from dqn.envs.rollout import play_cycle
from dqn.hardware import prepare, resolve
from dqn.learning.learner import Learner
from dqn.learning.networks import make_network, q_loss
from dqn.learning.optimizers import make_optimizer
from dqn.learning.sweep import OPERATORS, SweepRule, backward_sweep
from storage.formats.experience import write_experience

LANES, STEPS, TURNS = 64, 64, 7
GAME = "ALE/Breakout-v5"
LEARNING_RATE = 1e-4
PEAK_SIZE = 2_048  # rows of the square matrices whose product measures the peak of the machine

Rates = dict[str, float]


def take_turns(contenders: dict[str, Callable[[], int]], turns: int = TURNS) -> Rates:
    """Median rate per second of each contender, whose call returns the number of items that it processed.

    The first turn warms up and is not counted.
    """
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(turns + 1):
        for name, contender in contenders.items():
            began = perf_counter()
            done = contender()
            if turn:
                rates[name].append(done / (perf_counter() - began))
    return {name: statistics.median(values) for name, values in rates.items()}


def bench_play(network: str) -> Rates:
    """States per second of the emulator alone, of the network alone, and of play which is written to zarr."""
    config = resolve(make_config("fast", {"network": network, "game": GAME, "lanes": LANES}))
    emulator = open_emulator(LANES, config.threads)
    random = np.random.default_rng(0)
    groups = open_lanes(config, first_histories(LANES))
    learner = Learner(config, 4, prepare(config))
    experience = Experience.empty(STEPS, LANES, 4)
    draws = [np.random.default_rng(group) for group in range(len(groups))]
    policy = CyclePolicy(config.epsilon, 0, LANES, draws)
    states = np.concatenate([lanes.states for lanes in groups])

    def emulate() -> int:
        for _ in range(STEPS):
            emulator.step(random.integers(4, size=LANES))
        return STEPS * LANES

    def infer() -> int:
        for _ in range(STEPS):
            learner.estimate(states)
        return STEPS * LANES

    def collect() -> int:
        with tempfile.TemporaryDirectory() as directory:
            play_cycle(groups, learner.estimate, experience, policy)
            write_experience(Path(directory), experience)
        return STEPS * LANES

    rates = take_turns({"emulator": emulate, "network": infer, "play": collect})
    rates["play"] = 1 / (1 / rates["play"] + seeding_seconds(groups))
    emulator.close()
    for lanes in groups:
        lanes.close()
    return rates


def open_emulator(games: int, threads: int) -> gymnasium.vector.VectorEnv:
    """The vector environment of ale-py with as little preprocessing as possible."""
    emulator = gymnasium.make_vec(
        GAME,
        num_envs=games,
        vectorization_mode="vector_entry_point",
        num_threads=threads,
        img_height=105,
        img_width=80,
        stack_num=1,
        maxpool=False,
        noop_max=0,
        reward_clipping=False,
        use_fire_reset=False,
    )
    emulator.reset(seed=0)
    return emulator


def seeding_seconds(groups: list[Lanes]) -> float:
    """Seconds per state for seeding games anew, which the turns do not include."""
    began = perf_counter()
    first = np.arange(len(groups[0].episodes)) == 0
    groups[0]._reset(first, first)
    return (perf_counter() - began) / SEEDED_STEPS / len(groups)  # the other groups play meanwhile


def bench_sweep(states: int) -> Rates:
    """States per second of each operator for `states` states of 64 lanes, including the allocation of the targets."""
    draws = np.random.default_rng(0)
    experience = Experience.empty(states // LANES, LANES, 4, with_states=False)
    table = experience.actions.shape
    experience.q_values[:] = draws.random((*table, 4))
    experience.actions[:] = draws.integers(4, size=table)
    experience.rewards[:] = draws.random(table) < 0.02
    experience.life_lost[:] = draws.random(table) < 0.005

    def sweep(operator: str) -> Callable[[], int]:
        def run() -> int:
            for _ in range(20):
                backward_sweep(experience, SweepRule(operator, 0.99, 0.65))
            return 20 * experience.states_played

        return run

    return take_turns({operator: sweep(operator) for operator in OPERATORS})


def bench_optimize(preset: str) -> Rates:
    """States per second of training by the learner and by a plain eager float32 loop, and operations per second."""
    config = resolve(make_config(preset))
    device, size = prepare(config), config.batch_size
    learner = Learner(config, 4, device)
    learner.set_learning_rate(LEARNING_RATE)
    draws = np.random.default_rng(0)
    states = torch.from_numpy(draws.integers(0, 255, (size, 105, 80, 2), dtype=np.uint8)).to(device)
    targets, actions = torch.rand(size, 4, device=device), torch.randint(0, 4, (size,), device=device)
    plain = PlainLoop(config, device)
    with FlopCounterMode(display=False) as counter:
        learner.train_batch(states, targets, actions)
    kind = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    left, right = (torch.rand(PEAK_SIZE, PEAK_SIZE, device=device).to(kind) for _ in range(2))

    def train() -> int:
        for _ in range(4):
            learner.train_batch(states, targets, actions)
        return 4 * size

    def train_plainly() -> int:
        for _ in range(4):
            plain.train_batch(states, targets, actions)
        return 4 * size

    def multiply() -> int:
        for _ in range(8):
            product = left @ right
        product[0, 0].item()  # waits until a GPU has finished
        return 8 * 2 * PEAK_SIZE**3

    rates = take_turns({"plain": train_plainly, "learner": train, "operations at best": multiply}, turns=5)
    rates["operations"] = rates["learner"] * counter.get_total_flops() / size
    return rates


class PlainLoop:
    """The same network and optimizer in a simple program: float32, and the default memory layout of torch."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self.config = config.model_copy(update={"precision": "float32"})
        self.network = make_network(self.config, 4).to(device).to(memory_format=torch.contiguous_format)
        weights = self.network.parameters()
        if config.optimizer == "rmsprop":
            self.optimizer = make_optimizer(self.config, weights)
        else:
            kinds: dict[str, Any] = {"adam": torch.optim.Adam, "radam": torch.optim.RAdam}
            self.optimizer = kinds[config.optimizer](weights)
        self.optimizer.param_groups[0]["lr"] = LEARNING_RATE

    def train_batch(self, states: torch.Tensor, targets: torch.Tensor, actions: torch.Tensor) -> float:
        """Take one step and return the loss, which waits for a GPU each time."""
        pixels = states.permute(0, 3, 1, 2).float().contiguous()
        features = self.network.convolutions(pixels)
        q_values = self.network.dense(features.permute(0, 2, 3, 1).flatten(1))
        loss = q_loss(q_values, targets, actions, self.config.loss)
        self.optimizer.zero_grad()
        loss.backward()
        if self.config.max_grad_norm:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        return loss.item()


def measure(results: dict[str, Any]) -> None:
    """Measure play, sweep and optimization, and store the rates in `results`."""
    for network in (make_config().network, "tutorial"):
        results[f"play {network}"] = bench_play(network)
    for states in (4_096, 200_000):
        results[f"sweep {states}"] = bench_sweep(states)
    for preset in ("fast", "tutorial"):
        results[f"optimize {preset}"] = bench_optimize(preset)


def rows(results: dict[str, Any]) -> Iterator[Row]:
    """A row for each of the rates in `results`."""
    for name, rates in results.items():
        part, _, what = name.partition(" ")
        if part == "play":
            both = 1 / (1 / rates["emulator"] + 1 / rates["network"])
            yield Row(
                f"play, network `{what}`, including seeding and zarr",
                f"{rates['play']:,.0f} states/s",
                f"{rates['play'] / rates['emulator']:.0%} of the emulator alone ({rates['emulator']:,.0f}), "
                f"{rates['play'] / both:.0%} of emulator and network in turn",
                "2,500 states/s, or 90 % of both in turn" if what == "tutorial" else "75 % of the emulator",
            )
        elif part == "sweep":
            slowest = min(rates, key=lambda operator: rates[operator])
            yield Row(
                f"sweep of {int(what):,} states",
                f"{rates[slowest] / 1e6:,.0f} M states/s",
                f"`{slowest}`, the slowest",
                "50 M",
            )
        elif part == "optimize":
            yield Row(
                f"optimize, preset `{what}`, {results['precision']}",
                f"{rates['learner']:,.0f} states/s",
                f"{rates['learner'] / rates['plain']:.1f} times a plain float32 loop ({rates['plain']:,.0f}); "
                f"{rates['operations'] / rates['operations at best']:.0%} of the peak of a matrix product",
                "3 times" if what == "fast" else "4 times",
            )
