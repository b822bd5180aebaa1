"""Shards of lanes: tasks and units of their own, played in any order by any process, and one training."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dqn.envs.games import action_names
from flows.commands.inspection import open_inspection
from flows.commands.verify import verify_run
from flows.parameters import requested_config
from flows.train import publish_and_prune
from storage.errors import CorruptUnitError
from storage.formats.experience import read_experience, read_experiences
from storage.runs import StoredRun, create_run
from storage.units.unit import CHECKPOINT, EXPERIENCE, UnitKind
from tasks import process_cache
from tasks.collect_episodes import collect_episodes
from tasks.optimize import optimize
from tasks.update_q_values import update_q_values

# Four lanes in two shards of one group each, or in one of the same two groups; one without shards remembers as much
SETTINGS = {"lanes": 4, "replay_states": 80, "batch_size": 16, "threads": 1, "network": "small", "replay_cycles": 2}
SETTINGS |= {"episode_frames_limit": 60, "epsilon": "1:0:200"}
IN_SHARDS, IN_ONE = {"shards": 2, "lane_groups": 1}, {"shards": 1, "lane_groups": 2}

pytestmark = pytest.mark.usefixtures("home")


def started(name: str, **settings: Any) -> StoredRun:
    config = requested_config("fast", SETTINGS | settings)
    return create_run(config, action_names(config.game), name, {})


def go_on(run: StoredRun, *cycles: int, order: tuple[int, ...] = (0, 1), held: bool = True) -> str:
    """Do the cycles, the shards in that order; the digest of the last checkpoint."""
    for cycle in cycles:
        for task in (collect_episodes, update_q_values):
            for shard in order[: run.shards]:
                task.fn(run.run_id, cycle, shard)
                if not held:
                    process_cache.release()
        made = optimize.fn(run.run_id, cycle)
        publish_and_prune(run, made)
    return made.digest


def test_who_plays_a_shard_and_when_changes_nothing_and_it_is_the_training_of_all_lanes_together() -> None:
    run, one = started("shards", **IN_SHARDS), started("one", **IN_ONE)
    digest = go_on(run, 1, 2)
    assert digest == go_on(started("torn", **IN_SHARDS), 1, 2, order=(1, 0), held=False)
    assert digest != go_on(one, 1, 2)
    whole, together = (each.checkpoint(each.unit(CHECKPOINT, 2)) for each in (run, one))
    assert all(bool((whole.weights[name] == weight).all()) for name, weight in together.weights.items())
    assert [history.episode for history in whole.histories] == [history.episode for history in together.histories]
    assert whole.metadata.recent_scores == together.metadata.recent_scores != ()
    assert sorted(run.unit(CHECKPOINT, 2).metrics) == sorted(one.unit(CHECKPOINT, 2).metrics)
    played = read_experiences([[run.unit(kind, 2).directory for kind in run.kinds(EXPERIENCE)]])
    for name, table in vars(read_experience(one.unit(EXPERIENCE, 2).directory)).items():
        assert np.array_equal(getattr(played, name), table), name
    assert len(set(played.episode[-1])) == 4 and played.episode.max() >= 8, "their numbers are those of the run"

    assert set(run.unit(CHECKPOINT, 2).inputs) == {
        *("checkpoint", "experience-0", "experience-1", "targets-0", "targets-1"),
        *("experience-0-00001", "experience-1-00001"),
    }
    found = verify_run(run, replay=True)
    assert found.problems == [] and found.units == 2 * 5 and found.frames == 80
    about = open_inspection(run)
    assert about.experience is not None and about.experience.actions.shape == (20, 4)
    assert about.targets is not None and about.targets.q_values.shape == about.experience.q_values.shape
    damaged = run.unit(UnitKind("experience", 1), 2).directory
    next(damaged.glob("experience.zarr/rewards/c*")).write_bytes(b"damaged")
    (problem,) = verify_run(run).problems
    assert "experience-1" in problem


def test_states_of_shards_are_checked_before_a_network_learns_from_them() -> None:
    run = started("damaged", **IN_SHARDS, lanes=2)
    for task in (collect_episodes, update_q_values):
        for shard in (0, 1):
            task.fn(run.run_id, 1, shard)
    next(run.unit(UnitKind("experience", 1), 1).directory.glob("experience.zarr/states/c*")).write_bytes(b"damaged")
    with pytest.raises(CorruptUnitError, match="SHA-256 differs"):
        optimize.fn(run.run_id, 1)


def test_games_of_shards_that_others_play_now_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    run, closed = started("moved", **IN_SHARDS), []
    start = run.unit(CHECKPOINT, 0)
    games = SimpleNamespace(close=lambda: closed.append(1))
    monkeypatch.setitem(process_cache._held, "lanes-1", (replace(start, cycle=-1), [games]))
    monkeypatch.setitem(process_cache._held, "lanes-0", (start, ["games that go on"]))
    monkeypatch.setattr(process_cache, "open_lanes", lambda config, histories, shard: [f"games of {shard}"])
    assert process_cache.take_lanes(start, run.checkpoint(start), 1) == ["games of 1"]
    assert closed == [1] and set(process_cache._held) == {"lanes-0"}
    process_cache._held.clear()


def test_the_network_may_play_on_the_cpu_what_a_gpu_trains() -> None:
    config = requested_config("fast", {**SETTINGS, "lanes": 1, "play_device": "cpu"})
    gpu = config.model_copy(update={"device": "cuda", "precision": "bfloat16"})
    run = create_run(gpu, action_names(gpu.game), "gpu", {})
    assert collect_episodes.fn(run.run_id, 1).cycle == update_q_values.fn(run.run_id, 1).cycle == 1
    with pytest.raises(ValueError, match="device is cuda, and torch finds no CUDA device"):
        optimize.fn(run.run_id, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shards": 9}, "shards is 9; there are only 4 lanes"),
        ({"shards": 2, "lane_groups": 3}, "lane_groups is 3; there are only 4 lanes in 2 shards"),
    ],
)
def test_lanes_are_not_split_into_more_than_there_are(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        requested_config("fast", SETTINGS | settings)


@pytest.mark.parametrize(("lanes", "shards", "sizes"), [(8, 2, [4, 4]), (10, 4, [2, 3, 2, 3]), (3, 3, [1, 1, 1])])
def test_shards_are_all_lanes_in_order(lanes: int, shards: int, sizes: list[int]) -> None:
    config = requested_config("fast", {"lanes": lanes, "shards": shards, "threads": 1})
    slices = [config.shard_lanes(shard) for shard in range(shards)]
    assert [each.stop - each.start for each in slices] == sizes
    assert [lane for each in slices for lane in range(lanes)[each]] == list(range(lanes))
    numbers = [number for shard in range(shards) for number in config.group_numbers(shard)]
    assert numbers == list(range(len(numbers)))


def test_lanes_that_start_in_midgame_are_in_groups_of_their_own() -> None:
    config = requested_config("fast", {"lanes": 8, "shards": 2, "lane_groups": 2, "midgame_lanes": 3})
    assert config.groups(0) == [slice(0, 2), slice(2, 4)]
    assert config.groups(1) == [slice(4, 5), slice(5, 7), slice(7, 8)]
    assert list(config.group_numbers(1)) == [2, 3, 4]
