"""Power loss at every operation on files of one commit."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from watched_disk import CHANGES, Disk, Killed, Scene, commit, state, worst

from storage.durable import discard
from storage.settings import Settings

SAMPLES = int(os.environ.get("POWER_LOSSES", "2"))  # random states after a power loss, for each operation


def recoveries(disk: Disk, to: Path, seed: int, samples: int = SAMPLES) -> Iterator[Path]:
    """Possible states after a power loss now: only what is durable, everything, or random parts of the rest."""
    yield disk.after_power_loss(to, worst)
    yield disk.after_power_loss(to, lambda options: options[1])
    for sample in range(samples):
        yield disk.after_power_loss(to, random.Random(f"{seed} {sample}").choice)


def test_power_loss_at_any_operation_is_all_or_nothing(
    scene: Scene, tmp_path: Path, figure: Callable[[int, str, str], None]
) -> None:
    disk = Disk(scene.fresh())
    seen, losses = set(), 0

    def lose_power(index: int, name: str) -> None:
        nonlocal losses
        if name not in CHANGES:
            return
        for found in recoveries(disk, tmp_path / "after", index):
            losses += 1
            now = state(found)
            seen.add(now)
            # Files of a unit that is being removed may be lost before its name, which opening it detects.
            torn = scene.name == "replaced" and now.startswith("broken")
            assert torn or now in {scene.before, "none", "new"}, (index, name)
            assert scene.others_intact(found)

    with disk.watching(lose_power):
        commit(disk.root)
    assert {scene.before, "new"} <= seen
    tried = f"power lost {losses} times, at every operation of a commit ({scene.name})"
    figure(4, tried, "0 acknowledged commits lost; the commit is there whole or not at all")


def test_finished_commit_survives_power_loss(scene: Scene, tmp_path: Path) -> None:
    disk = Disk(scene.fresh())
    with disk.watching():
        commit(disk.root)
    for found in recoveries(disk, tmp_path / "after", 0, samples=50):
        assert state(found) == "new"
        assert scene.others_intact(found)


def test_every_fsync_of_a_commit_is_necessary(tmp_path: Path) -> None:
    scene = Scene("first", tmp_path)
    count = scene.operations().count("fsync")
    assert count == 3 + 3 + 3 + 1  # files, their directories, three new parents, and the unit's name
    for ignored in range(count):
        disk = Disk(scene.fresh())
        disk.ignored_fsync = ignored
        with disk.watching():
            commit(disk.root)
        assert state(disk.root) == "new"
        assert state(disk.after_power_loss(tmp_path / "after", worst)) != "new", f"fsync {ignored} is not needed"


@pytest.mark.parametrize("fault", ["killed", "fsync fails"])
def test_leftovers_of_an_attempt_do_not_weaken_the_next(tmp_path: Path, fault: str) -> None:
    scene = Scene("first", tmp_path)
    operations = scene.operations()
    for index, name in enumerate(operations):
        if name != "fsync" and fault == "fsync fails":
            continue

        def act(number: int, name: str, index: int = index) -> None:
            if fault == "killed" and number >= index:
                raise Killed
            if number == index:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        disk = Disk(scene.fresh())
        with disk.watching(act), suppress(Killed, OSError):
            commit(disk.root)
        with disk.watching():
            commit(disk.root)
        assert state(disk.after_power_loss(tmp_path / "after", worst)) == "new", (index, name)


def test_first_commit_in_a_new_home_survives_power_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(Scene("first", tmp_path).fresh())
    monkeypatch.setenv("DQN_HOME", str(disk.root / "new" / "home"))
    with disk.watching():
        settings = Settings.from_environment()
        commit(settings.home)
    found = disk.after_power_loss(tmp_path / "after", worst)
    assert state(found / "new" / "home") == "new"


def test_power_loss_during_discard_is_detected(tmp_path: Path) -> None:
    scene = Scene("replaced", tmp_path)
    disk = Disk(scene.fresh())

    def lose_power(index: int, name: str) -> None:
        if name not in CHANGES:
            return
        for found in recoveries(disk, tmp_path / "after", index):
            now = state(found)
            assert now in {"old", "none"} or now.startswith("broken")
            assert scene.others_intact(found)

    with disk.watching(lose_power):
        discard(disk.root / "replay" / "run" / "experience" / "00002", disk.root / "staging" / "run")
