"""Lanes that are restored from their histories continue exactly like lanes that were never closed."""

from __future__ import annotations

import signal
import time
import weakref
from collections.abc import Callable
from threading import Event
from typing import Any

import numpy as np
import pytest
from played import SEED, assert_same_future, play_at_random

from dqn.config import make_config
from dqn.envs import backends, lanes
from dqn.envs.histories import LaneHistory, advance, first_histories
from dqn.envs.lanes import Lanes
from dqn.randomness import noop_starts


@pytest.mark.parametrize(
    ("game", "settings", "ends"),
    [
        ("ALE/Breakout-v5", {}, "terminated"),
        ("ALE/Breakout-v5", {"frames_limit": 300}, "truncated"),
        ("Breakout-v0", {}, "terminated"),
        ("Breakout-v0", {"frames_limit": 300}, "truncated"),
        ("ALE/Pong-v5", {"frames_limit": 400}, "truncated"),
        ("ALE/Breakout-v5", {"frame_pooling": True}, "terminated"),
        ("ALE/SpaceInvaders-v5", {"frame_pooling": True, "frames_limit": 400}, "truncated"),
    ],
)
def test_restored_lanes_have_same_state_and_future(
    game: str,
    settings: dict[str, Any],
    ends: str,
    open_lanes: Callable[..., Lanes],
    seeded_after: Callable[[int], None],
) -> None:
    seeded_after(250)
    histories, states, happened = first_histories(3), 0, 0
    played = open_lanes(game, histories, **settings)
    for cycle_steps in (130, 1, 170, *[60] * 10):
        experience = play_at_random(played, cycle_steps, states)
        histories, _ = advance(histories, experience, states)
        states += experience.states_played
        happened += int(getattr(experience, ends).sum())
        # Require ends of episodes, a new seed of every lane, and an episode that continues an older seed.
        seeded_again = all(history.seeded_episode > lane for lane, history in enumerate(histories))
        if happened >= 3 and seeded_again and any(one.episode > one.seeded_episode for one in histories):
            break
    else:
        pytest.fail("the required events did not occur")
    restored = open_lanes(game, histories, **settings)
    assert restored.episodes.tolist() == [history.episode for history in histories]
    assert_same_future(played, restored, 120)


@pytest.mark.parametrize("game", ["ALE/Breakout-v5", "Breakout-v0"])
def test_histories_of_different_length_end_together(game: str, open_lanes: Callable[..., Lanes]) -> None:
    draws = np.random.default_rng(0)
    histories = [
        LaneHistory(lane, lane, draws.integers(4, size=length).astype(np.uint8))
        for lane, length in enumerate((33, 0, 12))
    ]
    together = open_lanes(game, histories)
    alone = [open_lanes(game, [history]) for history in histories]
    for _ in range(30):
        for lane, single in enumerate(alone):
            assert np.array_equal(single.states[0], together.states[lane])
        actions = draws.integers(4, size=3)
        together.step(actions)
        for lane, single in enumerate(alone):
            single.step(actions[[lane]])


def test_late_lane_gets_its_whole_time_limit(open_lanes: Callable[..., Lanes]) -> None:
    """The idle steps before its start do not count."""
    # Lane 1 starts 50 steps after lane 0. Until then it is idle, just long enough to reach the time limit.
    histories = [LaneHistory(2, 0, np.zeros(60, np.uint8)), LaneHistory(1, 1, np.zeros(10, np.uint8))]
    lanes = open_lanes("ALE/Breakout-v5", histories, frames_limit=200)
    cut_off = np.stack([lanes.step(np.zeros(2, np.int64)).truncated for _ in range(43)])
    assert [np.flatnonzero(column).tolist() for column in cut_off.T] == [[41], [40]]


def test_lanes_are_restored_before_truncated_row(
    open_lanes: Callable[..., Lanes],
) -> None:
    """The history ends between the time limit and the row that reports it."""
    histories = first_histories(2)
    played = open_lanes("ALE/Breakout-v5", histories, frames_limit=200)
    histories, finished = advance(histories, play_at_random(played, 50, 0), 0)
    assert finished == []
    restored = open_lanes("ALE/Breakout-v5", histories, frames_limit=200)
    assert_same_future(played, restored, 0)
    assert restored.step(np.zeros(2, np.int64)).truncated.all() and played.step(np.zeros(2, np.int64)).truncated.all()
    assert_same_future(played, restored, 60)


@pytest.mark.parametrize("game", ["ALE/Breakout-v5", "Breakout-v0"])
def test_played_lanes_restore_state_of_other_lane(
    game: str, open_lanes: Callable[..., Lanes], seeded_after: Callable[[int], None]
) -> None:
    """They then equal new lanes that are opened with the same histories."""
    seeded_after(150)
    sources = open_lanes(game, 2, noop_max=30, frames_limit=400)
    experience = play_at_random(sources, 140, 0)
    # The second history ends during the no-ops of its episode. Episodes of the source may have ended before.
    starts = [
        LaneHistory(20, 1, experience.actions[:90, 1], float("nan"), 90),
        LaneHistory(21, 0, experience.actions[:3, 0], float("nan"), 3),
    ]
    moved = open_lanes(game, 2, noop_max=30, frames_limit=400)
    play_at_random(moved, 200, 0)
    moved.restore(starts, Event())
    assert np.array_equal(moved.states[0], experience.states[90, 1])
    assert np.array_equal(moved.states[1], experience.states[3, 0])
    assert moved.with_noops(np.full(2, 2)).tolist() == [2, 0] and noop_starts(SEED, np.array([21]), 30) > 3
    assert_same_future(moved, open_lanes(game, starts, noop_max=30, frames_limit=400), 60)

    moved.restore(starts, Event())
    more = play_at_random(moved, 100, 0)
    histories, _ = advance(starts, more, 0)
    restored = open_lanes(game, histories, noop_max=30, frames_limit=400)
    assert restored.with_noops(np.full(2, 2)).tolist() == moved.with_noops(np.full(2, 2)).tolist()
    assert_same_future(moved, restored, 60)


def test_restoring_long_histories_can_be_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[weakref.ref[object]] = []

    class Watched(backends.NativeGames):
        def __init__(self, *options: Any) -> None:
            super().__init__(*options)
            opened.append(weakref.ref(self))

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(backends, "NativeGames", Watched)
    config = make_config("fast", {"game": "ALE/Pong-v5", "lanes": 2, "lane_groups": 2, "threads": 2})
    long = [LaneHistory(lane, lane, np.zeros(1_000_000, np.uint8)) for lane in range(2)]
    before = signal.signal(signal.SIGALRM, interrupt)
    began = time.monotonic()
    try:
        signal.setitimer(signal.ITIMER_REAL, 2)
        with pytest.raises(KeyboardInterrupt):
            lanes.open_lanes(config, long)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - began < 10
    assert len(opened) == 2
    assert [games() for games in opened] == [None, None]
