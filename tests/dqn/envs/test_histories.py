from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from dqn.config import make_config
from dqn.envs.experience import Experience
from dqn.envs.histories import FinishedEpisode, LaneHistory, advance, draw_midgame_starts, first_histories


def table(actions: list[list[int]], rewards: list[list[float]] | None = None, **ends: list[tuple]) -> Experience:
    """Experience with the given actions and rewards (T, L); `ends` are lists of (step, lane) by field."""
    steps, lanes = len(actions), len(actions[0])
    experience = Experience.empty(steps, lanes, 4, with_states=False)
    experience.actions[:] = actions
    if rewards:
        experience.rewards[:] = rewards
    for name, rows in ends.items():
        for row in rows:
            getattr(experience, name)[row] = True
    return experience


def plain(histories: list[LaneHistory]) -> list[tuple]:
    return [(one.episode, one.seeded_episode, one.actions.tolist(), one.score, one.steps) for one in histories]


def test_first_histories_start_at_own_episode() -> None:
    assert plain(first_histories(3)) == [(0, 0, [], 0, 0), (1, 1, [], 0, 0), (2, 2, [], 0, 0)]
    assert all(history.actions.dtype == np.uint8 for history in first_histories(3))


def test_advance_accumulates_over_cycles() -> None:
    """Actions, scores and steps of an episode that does not end add up."""
    first = table([[1, 2], [3, 0]], [[1, 0], [0, 4]])
    second = table([[2, 2]], [[-1, 0.5]])
    histories, finished = advance(first_histories(2), first, 0)
    assert finished == [] and plain(histories) == [(0, 0, [1, 3], 1, 2), (1, 1, [2, 0], 4, 2)]
    histories, finished = advance(histories, second, 4)
    assert finished == [] and plain(histories) == [(0, 0, [1, 3, 2], 0, 3), (1, 1, [2, 0, 2], 4.5, 3)]
    assert all(history.actions.dtype == np.uint8 for history in histories)


def test_advance_finishes_episode_in_mid_cycle() -> None:
    experience = table([[1, 1], [2, 2], [3, 3], [0, 0]], [[1, 0], [2, 0], [4, 0], [8, 0]], terminated=[(1, 0)])
    histories, finished = advance(first_histories(2), experience, 100)
    # Lane 0 of 2 ends in the second step: after the 2 states of the first step and its own state.
    assert finished == [FinishedEpisode(episode=0, states=100 + 2 + 1, score=3, steps=2)]
    assert plain(histories) == [(2, 0, [1, 2, 3, 0], 12, 2), (1, 1, [1, 2, 3, 0], 0, 4)]


def test_finished_episode_includes_earlier_cycles() -> None:
    before = [LaneHistory(4, 4, np.array([1, 1, 1], np.uint8), score=10.0, steps=3)]
    experience = table([[2], [3], [0]], [[5], [0], [1]], terminated=[(1, 0)])
    histories, finished = advance(before, experience, 50)
    assert finished == [FinishedEpisode(4, 52, 15, 5)]
    assert plain(histories) == [(5, 4, [1, 1, 1, 2, 3, 0], 1, 1)]


def test_truncated_row_is_no_step_of_its_episode() -> None:
    experience = table([[1], [2], [3]], [[1], [0], [1]], truncated=[(1, 0)])
    histories, finished = advance(first_histories(1), experience, 0)
    assert finished == [FinishedEpisode(0, states=2, score=1, steps=1)]
    # The row's action stays in the history, because its replay restarts the game.
    assert plain(histories) == [(1, 0, [1, 2, 3], 1, 1)]


def test_lost_life_does_not_end_episode() -> None:
    histories, finished = advance(first_histories(1), table([[1], [2]], life_lost=[(0, 0)]), 0)
    assert finished == [] and plain(histories) == [(0, 0, [1, 2], 0, 2)]


def test_end_with_last_step_leaves_empty_episode() -> None:
    histories, finished = advance(first_histories(1), table([[1], [2]], [[0], [3]], terminated=[(1, 0)]), 0)
    assert finished == [FinishedEpisode(0, 2, 3, 2)]
    assert plain(histories) == [(1, 0, [1, 2], 0, 0)]


def test_lane_plays_every_lth_episode() -> None:
    """A lane may end several episodes in a cycle."""
    experience = table([[0, 0, 0]] * 4, [[1, 1, 1]] * 4, terminated=[(0, 1), (2, 1)], truncated=[(3, 2)])
    histories, finished = advance(first_histories(3), experience, 0)
    assert finished == [
        FinishedEpisode(1, states=2, score=1, steps=1),
        FinishedEpisode(4, states=8, score=2, steps=2),
        FinishedEpisode(2, states=12, score=4, steps=3),
    ]
    assert [history.episode for history in histories] == [0, 7, 5]


def test_finished_episodes_are_in_order_of_their_end() -> None:
    experience = table([[0, 0]] * 3, terminated=[(2, 0), (0, 1), (1, 1)])
    _, finished = advance(first_histories(2), experience, 0)
    assert [episode.states for episode in finished] == [2, 4, 5]


def test_lane_is_seeded_at_first_reset_after_limit(seeded_after: Callable[[int], None]) -> None:
    seeded_after(5)
    histories, finished = first_histories(1), []
    seen = []
    for cycle in range(4):
        # Each cycle ends an episode after its third step: 3 steps since the seed, then 7, then 5, then 4.
        histories, ended = advance(histories, table([[cycle]] * 4, terminated=[(2, 0)]), 4 * cycle)
        finished += ended
        seen.append((histories[0].episode, histories[0].seeded_episode, len(histories[0].actions)))
    assert seen == [(1, 0, 4), (2, 2, 1), (3, 2, 5), (4, 4, 1)]
    assert histories[0].actions.tolist() == [3]
    assert [episode.steps for episode in finished] == [3, 4, 4, 4]


@pytest.mark.parametrize(("steps", "seeded"), [(4, 0), (5, 1), (6, 1)])
def test_seeding_limit_includes_the_last_step(steps: int, seeded: int, seeded_after: Callable[[int], None]) -> None:
    seeded_after(5)
    histories, _ = advance(first_histories(1), table([[1]] * steps, terminated=[(steps - 1, 0)]), 0)
    assert histories[0].seeded_episode == seeded


def test_truncated_rows_count_towards_seeding(seeded_after: Callable[[int], None]) -> None:
    seeded_after(3)
    histories, _ = advance(first_histories(1), table([[1]] * 4, truncated=[(2, 0)]), 0)
    assert plain(histories) == [(1, 1, [1], 0, 1)]


def test_advance_does_not_change_its_input() -> None:
    before = first_histories(2)
    advance(before, table([[1, 2]] * 3, terminated=[(1, 0)]), 0)
    assert plain(before) == plain(first_histories(2))


def test_advance_is_independent_of_cycle_length(seeded_after: Callable[[int], None]) -> None:
    seeded_after(10)
    draws = np.random.default_rng(0)
    whole = Experience.empty(60, 2, 4, with_states=False)
    whole.actions[:] = draws.integers(4, size=(60, 2))
    whole.rewards[:] = draws.integers(0, 5, (60, 2))
    whole.terminated[:] = draws.random((60, 2)) < 0.1
    whole.truncated[:] = (draws.random((60, 2)) < 0.05) & ~whole.terminated
    expected = advance(first_histories(2), whole, 0)
    for size in (1, 7, 30):
        histories, finished = first_histories(2), []
        for start in range(0, 60, size):
            piece = Experience.empty(len(whole.actions[start : start + size]), 2, 4, with_states=False)
            for name in ("actions", "rewards", "terminated", "truncated"):
                getattr(piece, name)[:] = getattr(whole, name)[start : start + size]
            histories, ended = advance(histories, piece, 2 * start)
            finished += ended
        assert plain(histories) == plain(expected[0]) and finished == expected[1]
    assert len(expected[1]) > 5


def test_midgame_lanes_copy_a_history_of_other_lanes() -> None:
    config = make_config("fast", {"lanes": 64, "midgame_lanes": 40})
    draws = np.random.default_rng(0)
    before = [
        LaneHistory(64 * lane + lane, lane, draws.integers(4, size=length).astype(np.uint8), 2.0, 9)
        for lane, length in enumerate([0, *[3_000] * 63])
    ]
    after = draw_midgame_starts(before, config, 32)
    assert after[:24] == before[:24]
    for old, new in zip(before[24:], after[24:], strict=True):
        assert new.episode == old.episode + 64 and np.isnan(new.score) and new.steps == len(new.actions)
        source = before[new.seeded_episode]
        assert new.seeded_episode < 24 and np.array_equal(new.actions, source.actions[: new.steps])
    steps, sources = {one.steps for one in after[24:]}, {one.seeded_episode for one in after[24:]}
    assert max(steps) <= 1_000 and len(steps) > 30 and len(sources) > 10
    other = draw_midgame_starts(before, config, 48)
    assert [one.steps for one in other[24:]] != [one.steps for one in after[24:]], "each cycle has its own draws"


def test_no_midgame_start_in_other_cycles_or_by_default() -> None:
    before = first_histories(64)
    assert draw_midgame_starts(before, make_config("fast", {"midgame_lanes": 40}), 33) == before
    assert draw_midgame_starts(before, make_config("fast"), 32) == before


def test_midgame_episode_has_no_score() -> None:
    """The next episode of the lane has a score."""
    before = [LaneHistory(3, 0, np.array([1, 1], np.uint8), score=float("nan"), steps=2)]
    played = table([[1]] * 4, [[5], [1], [2], [0]], terminated=[(1, 0), (2, 0)])
    histories, finished = advance(before, played, 50)
    assert finished == [FinishedEpisode(episode=4, states=53, score=2, steps=1)]
    assert plain(histories) == [(5, 0, [1, 1, 1, 1, 1, 1], 0, 1)]
