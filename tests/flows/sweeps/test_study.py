"""The study of a sweep: the same trials in the same order, however often the process that asks is replaced."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

from flows.sweeps.definition import Sweep, check_sweep
from flows.sweeps.results import columns, results, row
from flows.sweeps.study import Study

SEARCH = {"td_lambda": {"choices": [0.65, 0.8, 0.9]}, "learning_rate.start": {"low": 1e-4, "high": 1e-3, "log": True}}
RUNG = 100


def searched(**parts: Any) -> Sweep:
    return check_sweep({"name": "a", "base": {"states": 1000}, "search": SEARCH, "trials": 9, "seeds": [0, 1], **parts})


def objective(trial: FrozenTrial) -> float:
    return -abs(math.log(trial.params["learning_rate.start"] / 3e-4)) - abs(trial.params["td_lambda"] - 0.8)


def run(path: Path, sweep: Sweep, *, reopened: bool) -> list[tuple[Any, ...]]:
    """Propose, report and finish all trials; with `reopened`, by a new object for each step."""
    study = Study(path, sweep)
    while (trial := study.propose()) is not None:
        if reopened:
            study = Study(path, sweep)
        is_pruned = sweep.prune is not None and study.report(trial, RUNG, objective(trial))
        if reopened:
            study = Study(path, sweep)
            assert is_pruned == (sweep.prune is not None and study.report(trial, RUNG, objective(trial)))
        study.finish(trial, objective(trial), pruned=is_pruned)
    return [(each.params, each.state, each.value) for each in study.trials]


@pytest.mark.parametrize("parts", [{"sampler": "tpe"}, {"sampler": "random"}, {"prune": {"after_states": RUNG}}])
def test_trials_do_not_depend_on_the_process_that_proposes(tmp_path: Path, parts: dict[str, Any]) -> None:
    undisturbed = run(tmp_path / "undisturbed.db", searched(**parts), reopened=False)
    assert run(tmp_path / "reopened.db", searched(**parts), reopened=True) == undisturbed
    assert len({str(trial) for trial in undisturbed}) == len(undisturbed) == 9


def test_sampler_seed_changes_the_trials(tmp_path: Path) -> None:
    first, second = (run(tmp_path / f"{seed}.db", searched(sampler_seed=seed), reopened=False) for seed in (0, 1))
    assert first[0] != second[0]


def test_tpe_prefers_what_was_good(tmp_path: Path) -> None:
    """Of the later half of the trials more are near the best value than by chance."""
    values = [value for _, _, value in run(tmp_path / "a.db", searched(trials=40), reopened=False)]
    assert sum(values[20:]) / 20 > sum(values[:10]) / 10 + 0.1


def test_worse_share_is_pruned(tmp_path: Path) -> None:
    """A trial goes on if it is at least as good as the median of the others, pruned ones included."""
    study = Study(tmp_path / "a.db", searched(prune={"after_states": RUNG, "keep": 0.5}))
    pruned = []
    for value in (5.0, 1.0, 4.0, 3.5, 9.0):
        trial = study.propose()
        assert trial
        pruned.append(study.report(trial, RUNG, value))
        study.finish(trial, value, pruned=pruned[-1])
    assert pruned == [False, True, False, True, False]
    assert [trial.value for trial in study.ranking()] == [9, 5, 4]


def test_grid_tries_all_combinations_in_order(tmp_path: Path) -> None:
    grid = {"td_lambda": [0.1, 0.2], "lanes": [8, 16, 32]}
    study = Study(tmp_path / "a.db", check_sweep({"name": "a", "grid": grid}))
    assert study.most_trials == 6
    found = [trial.params for _ in range(6) if (trial := study.propose())]
    assert found == study.sweep.combinations()
    assert study.propose() is None
    assert found[1] == {"td_lambda": 0.1, "lanes": 16}


def test_integer_field_gets_integers_and_number_field_numbers(tmp_path: Path) -> None:
    search = {"batch_size": {"low": 16, "high": 256, "log": True}, "td_lambda": {"low": 0, "high": 1}}
    study = Study(tmp_path / "a.db", check_sweep({"name": "a", "search": search, "trials": 5}))
    trials = [trial for _ in range(5) if (trial := study.propose())]
    assert {type(trial.params["batch_size"]) for trial in trials} == {int}
    assert any(0 < trial.params["td_lambda"] < 1 for trial in trials)


def test_other_sweep_of_the_same_name_is_refused(tmp_path: Path) -> None:
    Study(tmp_path / "a.db", searched())
    Study(tmp_path / "a.db", searched(trials=20, parallel=3))  # these can change
    with pytest.raises(
        ValueError, match="sweep a was started with another value of seeds; restore it, or give the sweep an"
    ):
        Study(tmp_path / "a.db", searched(seeds=[0]))


def test_rows_show_seeds_interval_and_reason(tmp_path: Path) -> None:
    study = Study(tmp_path / "a.db", searched())
    first, second, third = (study.propose() for _ in range(3))
    assert first
    assert second
    assert third
    for seed, value in ((0, 1.0), (1, 3.0)):
        study.record_seed(first, seed, value)
    study.finish(first, 2.0)
    study.fail(second, "the memory is full")
    study.record_seed(third, 1, 4.0)
    rows = [dict(zip(columns(study), row(study, each), strict=True)) for each in results(study)]
    assert [(each["trial"], each["seeds"], each["objective"]) for each in rows] == [
        ("0", "2 of 2", "2.00"),
        ("1", "0 of 2", "-"),
        ("2", "1 of 2", "4.00"),
    ]
    assert [each["status"] for each in rows] == ["complete", "failed: the memory is full", "running"]
    assert rows[0]["interval"] == "1.00 to 3.00"
    assert study.trials[1].state == TrialState.FAIL
