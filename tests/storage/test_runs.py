from __future__ import annotations

import logging
from dataclasses import replace

import pytest
from small_run import commit, damage

from dqn.config import TrainConfig, make_config
from storage.errors import CorruptUnitError, StorageError
from storage.publication import prune_old_cycles
from storage.runs import StoredRun
from storage.selection import find_checkpoint
from storage.units.unit import CHECKPOINT, EVALUATION, EXPERIENCE, KINDS, TARGETS, UnitKind, cycle_name


def kept(**fields: object) -> TrainConfig:
    return make_config("fast", {"overlap": "no", **fields})


# ---------------------------------------------------------------- units


def test_run_stores_units_of_every_kind_and_cycle(run: StoredRun) -> None:
    for kind in KINDS:
        for cycle in (0, 1, 100_000):
            commit(run, kind, cycle, data=f"{kind} {cycle}".encode())
    for kind in KINDS:
        for cycle in (0, 1, 100_000):
            unit = run.unit(kind, cycle)
            assert (unit.kind, unit.cycle) == (kind, cycle)
            assert (unit.directory / "data").read_bytes() == f"{kind} {cycle}".encode()


def test_stores_of_kinds_are_artifacts_or_replay(run: StoredRun) -> None:
    assert str(run.store(CHECKPOINT)) == f"{run.settings.home}/artifacts/0123/checkpoints"
    assert str(run.store(EVALUATION)) == f"{run.settings.home}/artifacts/0123/evaluation"
    assert str(run.store(TARGETS)) == f"{run.settings.home}/replay/{run.run_id}/targets"


def test_unit_names_its_run_and_flow_run(run: StoredRun) -> None:
    with run.commit(TARGETS, 1, {}, {"prefect_flow_run_id": "f"}):
        pass
    assert run.unit(TARGETS, 1).made["by"] == {"mlflow_run_id": run.run_id, "prefect_flow_run_id": "f"}


def test_missing_unit_is_reported(run: StoredRun) -> None:
    with pytest.raises(StorageError, match=r"run 0123456789abcdef has no targets of cycle 3"):
        run.unit(TARGETS, 3)


def test_damaged_unit_is_reported(run: StoredRun) -> None:
    damage(commit(run, TARGETS, 3))
    with pytest.raises(CorruptUnitError, match=r"targets/00003/data"):
        run.unit(TARGETS, 3)


def test_damaged_latest_checkpoint_is_reported(run: StoredRun) -> None:
    with pytest.raises(StorageError, match="has no checkpoint"):
        find_checkpoint(run, "latest")
    commit(run, CHECKPOINT, 3)
    damage(commit(run, CHECKPOINT, 4))
    with pytest.raises(CorruptUnitError, match=r"checkpoints/00004/data"):
        find_checkpoint(run, "latest")


@pytest.mark.parametrize(("kind", "cycle"), [(EXPERIENCE, 3), (TARGETS, 4)])
def test_unit_at_the_path_of_another_is_reported(run: StoredRun, kind: UnitKind, cycle: int) -> None:
    unit = commit(run, TARGETS, 3)
    directory = run.store(kind).directory
    directory.mkdir(parents=True, exist_ok=True)
    unit.directory.rename(directory / cycle_name(cycle))
    with pytest.raises(CorruptUnitError, match="is the targets of cycle 3"):
        run.unit(kind, cycle)
    assert run.made(kind, cycle, {}) is None


def test_made_returns_the_unit_of_the_same_inputs(run: StoredRun) -> None:
    unit = commit(run, TARGETS, 3, {"experience": "ab", "checkpoint": "cd"})
    assert run.made(TARGETS, 3, {"checkpoint": "cd", "experience": "ab"}) == unit
    for other in ({}, {"experience": "ab"}, {"experience": "ab", "checkpoint": "ce"}):
        assert run.made(TARGETS, 3, other) is None
    assert run.made(TARGETS, 4, {"experience": "ab", "checkpoint": "cd"}) is None
    assert run.made(EXPERIENCE, 3, {"experience": "ab", "checkpoint": "cd"}) is None


def test_made_logs_a_damaged_unit_and_returns_none(run: StoredRun, caplog: pytest.LogCaptureFixture) -> None:
    damage(commit(run, TARGETS, 3))
    with caplog.at_level(logging.WARNING):
        assert run.made(TARGETS, 3, {}) is None
    assert "targets/00003/data" in caplog.text
    commit(run, TARGETS, 3)
    assert run.made(TARGETS, 3, {}) is not None


def test_disk_error_does_not_count_as_damage(run: StoredRun, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(run, CHECKPOINT, 3)

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("storage.units.unit.hashlib.file_digest", fail)
    for look in (lambda: run.made(CHECKPOINT, 3, {}), run.newest_checkpoint):
        with pytest.raises(OSError, match="Input/output error"):
            look()


# ---------------------------------------------------------------- the newest checkpoint, pruning


def test_newest_checkpoint_is_of_the_last_cycle(run: StoredRun) -> None:
    for cycle in (0, 9, 10, 2):
        commit(run, CHECKPOINT, cycle)
    assert run.newest_checkpoint().cycle == 10


@pytest.mark.parametrize("how", ["flipped", "deleted", "no manifest", "empty", "another's", "a file", "a link"])
def test_newest_checkpoint_skips_and_logs_damaged_ones(
    run: StoredRun, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    units = [commit(run, CHECKPOINT, cycle) for cycle in (4, 5, 6)]
    directory = units[2].directory
    if how == "flipped":
        damage(units[2])
    elif how in ("deleted", "no manifest"):
        (directory / ("data" if how == "deleted" else "manifest.json")).unlink()
    else:
        directory.rename(directory.with_name("aside"))
        if how == "empty":
            directory.mkdir()
        elif how == "another's":
            commit(run, CHECKPOINT, 7).directory.rename(directory)
        elif how == "a file":
            directory.write_bytes(b"?")
        else:
            directory.symlink_to(units[0].directory)
    damage(units[1])
    with caplog.at_level(logging.WARNING):
        assert run.newest_checkpoint() == units[0]
    assert "checkpoints/00006" in caplog.text
    assert "checkpoints/00005/data" in caplog.text


def test_newest_damaged_checkpoint_is_named_if_all_are(run: StoredRun) -> None:
    for cycle in (1, 2):
        damage(commit(run, CHECKPOINT, cycle))
    with pytest.raises(StorageError, match=r"00002/data"):
        run.newest_checkpoint()


def test_missing_checkpoint_is_reported(run: StoredRun) -> None:
    with pytest.raises(StorageError, match=r"has no checkpoint; start a new run"):
        run.newest_checkpoint()


def test_foreign_entries_do_not_hide_the_newest_checkpoint(run: StoredRun) -> None:
    unit = commit(run, CHECKPOINT, 4)
    for name in ("7", "notes", "000008"):
        (run.store(CHECKPOINT).directory / name).mkdir()
    assert run.newest_checkpoint() == unit


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_prune_keeps_the_newest_cycles_of_every_kind(run: StoredRun, keep: int) -> None:
    for kind in KINDS:
        for cycle in range(0 if kind == CHECKPOINT else 1, 6):
            commit(run, kind, cycle)
    (run.store(TARGETS).directory / "notes").mkdir()
    prune_old_cycles(run, 5, kept(keep_cycles=keep))
    prune_old_cycles(run, 5, kept(keep_cycles=keep))
    for kind in KINDS:
        left = sorted(path.name for path in run.store(kind).directory.iterdir() if path.name != "notes")
        assert left == [f"{cycle:05d}" for cycle in range(6 - keep, 6)]
        assert all(run.unit(kind, int(name)) for name in left)
    assert (run.store(TARGETS).directory / "notes").is_dir()
    assert list(run.settings.staging(run.run_id).iterdir()) == []


def test_prune_keeps_experience_for_the_replay_memory(run: StoredRun) -> None:
    for kind in KINDS:
        for cycle in range(0 if kind == CHECKPOINT else 1, 8):
            commit(run, kind, cycle)
    prune_old_cycles(run, 7, kept(keep_cycles=2, replay_cycles=3))
    assert [sorted(run.cycles(kind)) for kind in KINDS] == [[4, 5, 6, 7], [6, 7], [6, 7]]


def test_prune_keeps_the_checkpoint_that_plays_after_a_resume(run: StoredRun) -> None:
    for kind in KINDS:
        for cycle in range(0 if kind == CHECKPOINT else 1, 6):
            commit(run, kind, cycle)
    prune_old_cycles(run, 5, kept(keep_cycles=1, overlap="yes"))
    assert [sorted(run.cycles(kind)) for kind in KINDS] == [[5], [5], [4, 5]]


def test_shards_have_their_own_kinds_and_are_pruned_alike(run: StoredRun) -> None:
    assert run.kinds(*KINDS) == list(KINDS)
    run = replace(run, shards=2)
    kinds = run.kinds(*KINDS)
    assert [str(kind) for kind in kinds] == ["experience-0", "experience-1", "targets-0", "targets-1", "checkpoint"]
    for kind in kinds:
        for cycle in (1, 2, 3):
            commit(run, kind, cycle)
    prune_old_cycles(run, 3, kept(keep_cycles=1, replay_cycles=2))
    assert [sorted(run.cycles(kind)) for kind in kinds] == [[2, 3], [2, 3], [3], [3], [3]]


def test_best_checkpoint_needs_an_evaluation_by_the_runs_own_protocol(run: StoredRun) -> None:
    commit(run, CHECKPOINT, 3)
    with pytest.raises(ValueError, match="was not evaluated yet; `dqn evaluate "):
        find_checkpoint(run, "best")
    commit(run, replace(EVALUATION, protocol="20-episodes"), 3)
    with pytest.raises(ValueError, match=r"only by other protocols than its own \(20-episodes\), so its checkpoints "):
        find_checkpoint(run, "best")


def test_prune_of_an_empty_run_does_nothing(run: StoredRun) -> None:
    prune_old_cycles(run, 5, kept(keep_cycles=2))
