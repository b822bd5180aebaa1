"""Shards of lanes have tasks and units of their own, which any process may make in any order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pipeline import play_and_sweep, run_cycles

from dqn.envs.games import action_names
from flows.commands.inspection import open_inspection
from flows.commands.verify import verify_run
from flows.parameters import requested_config
from storage.errors import CorruptUnitError
from storage.formats.experience import read_experience, read_experiences
from storage.runs import StoredRun, create_run
from storage.units.unit import CHECKPOINT, EXPERIENCE, UnitKind
from tasks import process_cache
from tasks.optimize import optimize
from tasks.unit_reference import UnitReference

# Four lanes in two shards of one group each, or in one of the same two groups; one without shards remembers as much
SETTINGS = {"lanes": 4, "replay_states": 80, "batch_size": 16, "threads": 1, "network": "small", "replay_cycles": 2}
SETTINGS |= {"episode_frames_limit": 60, "epsilon": "1:0:200"}
IN_SHARDS, IN_ONE = {"shards": 2, "lane_groups": 1}, {"shards": 1, "lane_groups": 2}

SECOND = UnitKind("experience", 1)

pytestmark = pytest.mark.usefixtures("home")


def created(name: str, **settings: Any) -> StoredRun:
    config = requested_config("fast", SETTINGS | settings)
    return create_run(config, action_names(config.game), name, {})


def test_sharded_run_equals_unsharded() -> None:
    """Neither the order of the shards nor the processes that play them change anything."""
    run, one = created("shards", **IN_SHARDS), created("one", **IN_ONE)
    digest = run_cycles(run, 2).digest
    reversed_run = created("reversed", **IN_SHARDS)
    assert digest == run_cycles(reversed_run, 2, order=(1, 0), between=process_cache.clear).digest
    assert digest != run_cycles(one, 2).digest
    whole, together = (each.checkpoint(each.unit(CHECKPOINT, 2)) for each in (run, one))
    assert all(bool((whole.weights[name] == weight).all()) for name, weight in together.weights.items())
    assert [history.episode for history in whole.histories] == [history.episode for history in together.histories]
    assert whole.metadata.recent_scores == together.metadata.recent_scores != ()
    assert sorted(run.unit(CHECKPOINT, 2).metrics) == sorted(one.unit(CHECKPOINT, 2).metrics)
    played = read_experiences([[run.unit(kind, 2).directory for kind in run.kinds(EXPERIENCE)]])
    for name, table in vars(read_experience(one.unit(EXPERIENCE, 2).directory)).items():
        assert np.array_equal(getattr(played, name), table), name
    assert len(set(played.episode[-1])) == 4 and played.episode.max() >= 8  # numbers of the whole run

    assert set(run.unit(CHECKPOINT, 2).inputs) == {
        *("checkpoint", "experience-0", "experience-1", "targets-0", "targets-1"),
        *("experience-0-00001", "experience-1-00001"),
    }
    found = verify_run(run, replay=True)
    assert found.problems == [] and found.units == 2 * 5 and found.frames == 80
    about = open_inspection(run)
    assert about.experience is not None and about.experience.actions.shape == (20, 4)
    assert about.targets is not None and about.targets.q_values.shape == about.experience.q_values.shape
    damaged = run.unit(SECOND, 2).directory
    next(damaged.glob("experience.zarr/rewards/c*")).write_bytes(b"damaged")
    (problem,) = verify_run(run).problems
    assert "experience-1" in problem


def test_states_of_shards_are_verified_before_training() -> None:
    run = created("damaged", **IN_SHARDS, lanes=2)
    checkpoint = UnitReference.of(run.unit(CHECKPOINT, 0))
    experience, targets = play_and_sweep(run, checkpoint)
    next(run.unit(SECOND, 1).directory.glob("experience.zarr/states/c*")).write_bytes(b"damaged")
    with pytest.raises(CorruptUnitError, match="SHA-256 differs"):
        optimize.fn(run.run_id, checkpoint, experience, targets)


def test_play_device_cpu_plays_for_a_gpu() -> None:
    config = requested_config("fast", {**SETTINGS, "lanes": 1, "play_device": "cpu"})
    gpu = config.model_copy(update={"device": "cuda", "precision": "bfloat16"})
    run = create_run(gpu, action_names(gpu.game), "gpu", {})
    checkpoint = UnitReference.of(run.unit(CHECKPOINT, 0))
    experience, targets = play_and_sweep(run, checkpoint)
    assert experience[0].cycle == targets[0].cycle == 1
    with pytest.raises(ValueError, match="device is cuda, but torch finds no CUDA device"):
        optimize.fn(run.run_id, checkpoint, experience, targets)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shards": 9}, "shards is 9; it can be at most lanes, which is 4"),
        ({"shards": 2, "lane_groups": 3}, "lane_groups is 3; it can be at most lanes / shards, which is 2"),
    ],
)
def test_too_many_shards_or_groups_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        requested_config("fast", SETTINGS | settings)


@pytest.mark.parametrize(("lanes", "shards", "sizes"), [(8, 2, [4, 4]), (10, 4, [2, 3, 2, 3]), (3, 3, [1, 1, 1])])
def test_shards_cover_all_lanes_in_order(lanes: int, shards: int, sizes: list[int]) -> None:
    config = requested_config("fast", {"lanes": lanes, "shards": shards, "threads": 1})
    slices = [config.shard_lanes(shard) for shard in range(shards)]
    assert [each.stop - each.start for each in slices] == sizes
    assert [lane for each in slices for lane in range(lanes)[each]] == list(range(lanes))
    numbers = [number for shard in range(shards) for number in config.group_numbers(shard)]
    assert numbers == list(range(len(numbers)))


def test_midgame_lanes_have_groups_of_their_own() -> None:
    config = requested_config("fast", {"lanes": 8, "shards": 2, "lane_groups": 2, "midgame_lanes": 3})
    assert config.groups(0) == [slice(0, 2), slice(2, 4)]
    assert config.groups(1) == [slice(4, 5), slice(5, 7), slice(7, 8)]
    assert list(config.group_numbers(1)) == [2, 3, 4]
