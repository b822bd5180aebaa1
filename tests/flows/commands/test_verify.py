"""`dqn verify` of an intact run, and of runs with damage."""

from __future__ import annotations

import json
import sqlite3
import sys
from contextlib import closing
from typing import Any

import pytest

from flows import cli
from storage.formats.experience import read_experience, write_experience
from storage.runs import StoredRun, open_run
from storage.units.unit import EVALUATION, EXPERIENCE, KINDS, TARGETS, UnitKind

DOUBLE = "insert into metrics select key, value, timestamp + 1, run_uuid, step, is_nan from metrics where {}"

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def run(damageable_run: str) -> StoredRun:
    return open_run(damageable_run)


def verify(*options: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["dqn", "verify", *options])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    return int(stopped.value.code or 0)


def verified(capsys: pytest.CaptureFixture[str], run: StoredRun, *options: str) -> tuple[int, dict[str, Any], str]:
    """The exit status, the printed JSON, and stderr."""
    status = verify(run.run_id, "--json", *options)
    output = capsys.readouterr()
    return status, json.loads(output.out), output.err


def test_verify_prints_the_digest_of_an_intact_run(run: StoredRun, capsys: pytest.CaptureFixture[str]) -> None:
    status, result, errors = verified(capsys, run, "--replay")
    assert (status, errors, result["problems"]) == (0, "", [])
    newest = run.newest_checkpoint()
    assert (result["digest"], result["cycle"]) == (newest.digest, newest.cycle)
    assert result["frames"] == len(run.cycles(EXPERIENCE)) * 256
    assert verify(run.name) == 0
    assert newest.digest in capsys.readouterr().out


@pytest.mark.parametrize("kind", [*KINDS, EVALUATION], ids=str)
def test_verify_names_a_damaged_file(run: StoredRun, kind: UnitKind, capsys: pytest.CaptureFixture[str]) -> None:
    unit = run.unit(kind, run.cycles(kind)[0])
    path = unit.directory / max(unit.files)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    status, result, errors = verified(capsys, run)
    assert status == 1
    assert [problem for problem in result["problems"] if str(path) in problem]
    assert str(path) in errors and "Traceback" not in errors


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (DOUBLE, "has 2 points of"),
        ("delete from metrics where {}", "has None for"),
        ("update metrics set value = value + 1 where {}", "not "),
    ],
    ids=["doubled", "missing", "changed"],
)
def test_verify_names_a_wrong_metric(
    run: StoredRun, change: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each metric must be in MLflow once, with the committed value."""
    cycle = run.cycles(TARGETS)[1]
    step = run.unit(TARGETS, cycle).metrics[0].step
    where = f"key = 'q_values/after_mean' and step = {step} and run_uuid = '{run.run_id}'"
    with closing(sqlite3.connect(run.settings.home / "mlflow.db")) as store:
        assert store.execute(change.format(where)).rowcount == 1
        store.commit()
    status, result, _ = verified(capsys, run)
    assert status == 1
    (found,) = result["problems"]
    assert problem in found and f"q_values/after_mean at step {step}" in found


def test_verify_replay_names_a_differing_frame(run: StoredRun, capsys: pytest.CaptureFixture[str]) -> None:
    cycle = run.cycles(EXPERIENCE)[0]
    unit = run.unit(EXPERIENCE, cycle)
    experience = read_experience(unit.directory)
    experience.states[17, 3, 50, 40, 0] ^= 1
    with run.commit(EXPERIENCE, cycle, unit.inputs) as draft:  # with a valid manifest
        write_experience(draft.directory, experience)
        draft.metrics += unit.metrics
    assert verified(capsys, run)[0] == 0
    status, result, _ = verified(capsys, run, "--replay")
    assert status == 1
    assert result["problems"] == [f"cycle {cycle}: step 17 of lane 3 differs when replayed"]
