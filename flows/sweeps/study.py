"""The trials of a sweep: which configuration is tried next, and what came out. Optuna chooses; its study is a file."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.pruners import PercentilePruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from flows.sweeps.definition import Choices, Range, Sweep, Value

SEEDS, REASON, DEFINITION = "seeds", "reason", "sweep"  # names of attributes of a trial and of the study

optuna.logging.set_verbosity(optuna.logging.WARNING)
logging.getLogger("alembic").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


class Study:
    """The trials of one sweep, in a SQLite file. Every change is one transaction, so a killed sweep leaves no half.

    Which trial comes next and whether a trial is pruned are functions of the stored trials and of the seed alone.
    A sweep that was killed therefore goes on as if it had not been, if one trial runs at a time.
    """

    def __init__(self, path: Path, sweep: Sweep) -> None:
        """Open or create the study of `sweep` in the file at `path`.

        Raises:
            ValueError: the file has the study of another sweep; the message names the part that differs.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.sweep = sweep
        self._storage = RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 60}})
        self._lock = threading.Lock()
        self.study = optuna.create_study(
            storage=self._storage, study_name=sweep.name, direction="maximize", load_if_exists=True
        )
        stored = self.study.user_attrs.get(DEFINITION)
        if stored is None:
            self.study.set_user_attr(DEFINITION, sweep.fixed())
        elif differing := [name for name, value in sweep.fixed().items() if stored.get(name) != value]:
            raise ValueError(
                f"sweep {sweep.name} was started with another value of {', '.join(differing)}; restore it, "
                "or give the sweep another name (trials and parallel can be changed)"
            )

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials so far, in the order in which they were proposed."""
        return self.study.get_trials(deepcopy=False)

    @property
    def most_trials(self) -> int:
        """Number of trials that the sweep has at its end."""
        return self.sweep.trials or len(self.sweep.combinations())

    def propose(self) -> FrozenTrial | None:
        """Store the next trial and return it; None if the sweep has all its trials."""
        with self._lock:
            before = self.trials
            if len(before) >= self.most_trials:
                return None
            params = self._next_params(before)
            trial = create_trial(state=TrialState.RUNNING, params=params, distributions=_distributions(self.sweep))
            self.study.add_trial(trial)
            return self.trials[-1]

    def _next_params(self, before: list[FrozenTrial]) -> dict[str, Any]:
        if self.sweep.search is None:
            return self.sweep.combinations()[len(before)]
        study = optuna.create_study(direction="maximize", sampler=_sampler(self.sweep, len(before)))
        study.add_trials(before)
        return dict(study.ask(_distributions(self.sweep)).params)

    def report(self, trial: FrozenTrial, states: int, value: float) -> bool:
        """Store the objective of a trial after `states` states, and return whether the trial is pruned.

        It is pruned if its objective is below that of the best share of the other trials after as many states.
        """
        assert self.sweep.prune
        with self._lock:
            self._storage.set_trial_intermediate_value(trial._trial_id, states, value)
            # Pruned trials count, too, so all others are presented to the pruner as complete.
            others = [
                create_trial(value=other.intermediate_values[states], intermediate_values=other.intermediate_values)
                for other in self.trials
                if other.number != trial.number and states in other.intermediate_values
            ]
        if not others:
            return False
        study = optuna.create_study(direction="maximize")
        study.add_trials(others)
        pruner = PercentilePruner(100 * self.sweep.prune.keep, n_startup_trials=1)
        return pruner.prune(study, create_trial(state=TrialState.RUNNING, intermediate_values={states: value}))

    def record_seed(self, trial: FrozenTrial, seed: int, value: float) -> None:
        """Store the objective of one training of a trial."""
        with self._lock:
            seeds = {**self.of_seeds(self._storage.get_trial(trial._trial_id)), seed: value}
            named = {str(seed): value for seed, value in seeds.items()}
            self._storage.set_trial_user_attr(trial._trial_id, SEEDS, named)

    def finish(self, trial: FrozenTrial, value: float, *, pruned: bool = False) -> None:
        """Store that a trial has ended with this objective."""
        state = TrialState.PRUNED if pruned else TrialState.COMPLETE
        self._storage.set_trial_state_values(trial._trial_id, state, [value])

    def fail(self, trial: FrozenTrial, reason: str) -> None:
        """Store that a trial has failed."""
        self._storage.set_trial_user_attr(trial._trial_id, REASON, reason)
        self._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)

    @staticmethod
    def of_seeds(trial: FrozenTrial) -> dict[int, float]:
        """The objective of each training of a trial so far, by seed."""
        return {int(seed): value for seed, value in trial.user_attrs.get(SEEDS, {}).items()}

    def ranking(self) -> list[FrozenTrial]:
        """The complete trials, best first; equal ones in the order in which they were proposed."""
        complete = [trial for trial in self.trials if trial.state == TrialState.COMPLETE]
        return sorted(complete, key=lambda trial: (-_value(trial), trial.number))


def _value(trial: FrozenTrial) -> float:
    assert trial.value is not None
    return trial.value


def _sampler(sweep: Sweep, number: int) -> BaseSampler:
    """The sampler of one trial, whose draws depend on the seed and the number of the trial only."""
    seed = int(np.random.SeedSequence([sweep.sampler_seed, number]).generate_state(1)[0])
    if sweep.sampler == "random":
        return RandomSampler(seed=seed)
    startup = max(2, min(10, (sweep.trials or 0) // 4))  # the first trials are random; Optuna's default is 10
    # With constant_liar, trials that run now count as bad ones, so that those beside them differ.
    return TPESampler(seed=seed, n_startup_trials=startup, constant_liar=sweep.parallel > len(sweep.seeds))


def _distributions(sweep: Sweep) -> dict[str, BaseDistribution]:
    found: Mapping[str, Choices | Range | list[Value]] = sweep.search or sweep.grid or {}
    return {name: _distribution(name, values) for name, values in found.items()}


def _distribution(name: str, values: Choices | Range | list[Value]) -> BaseDistribution:
    if isinstance(values, list):
        return CategoricalDistribution(values)
    if isinstance(values, Choices):
        return CategoricalDistribution(values.choices)
    if Sweep.is_integer(name):
        return IntDistribution(int(values.low), int(values.high), log=values.log)
    return FloatDistribution(values.low, values.high, log=values.log)
