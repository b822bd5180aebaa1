from __future__ import annotations

import weakref
from collections.abc import Callable

import gymnasium
import numpy as np
import pytest
from played import SEED, assert_same_future, play_at_random

from dqn.envs.experience import Experience
from dqn.envs.games import GameSettings, action_names, check_game, game_names, game_title
from dqn.envs.histories import LaneHistory, advance, first_histories
from dqn.envs.lanes import Lanes, closed_on_failure
from dqn.envs.observations import small_frames
from dqn.randomness import noop_starts


@pytest.mark.parametrize("game", ["ALE/Breakout-v5", "Breakout-v0"])
def test_time_limit_repeats_last_state_once(game: str, open_lanes: Callable[..., Lanes]) -> None:
    """The step after that is truncated and starts the next episode."""
    lanes = open_lanes(game, 2, frames_limit=200)
    first_states = lanes.states.copy()
    draws, cut_off = np.random.default_rng(0), np.zeros(2, bool)
    for _ in range(110):
        before, episodes = lanes.states.copy(), lanes.episodes
        outcome = lanes.step(draws.integers(4, size=2))
        for lane in np.flatnonzero(outcome.truncated):
            assert outcome.rewards[lane] == 0
            assert not outcome.life_lost[lane] and not outcome.terminated[lane]
            assert before[lane, ..., 1].any()  # the state of a truncated row has the motion trace of its episode
            assert not lanes.states[lane, ..., 1].any()
            assert np.array_equal(lanes.states[lane, ..., 0], first_states[lane, ..., 0])
            assert lanes.episodes[lane] == episodes[lane] + 2
            cut_off[lane] = True
        going_on = ~(outcome.truncated | outcome.terminated)
        assert np.array_equal(lanes.episodes[going_on], episodes[going_on])
    assert cut_off.all()


def test_time_limit_counts_frames(open_lanes: Callable[..., Lanes]) -> None:
    lanes = open_lanes("ALE/Pong-v5", 1, frames_limit=40)  # ten steps of four frames, then a truncated row
    outcomes = [bool(lanes.step(np.zeros(1, np.int64)).truncated[0]) for _ in range(33)]
    assert np.flatnonzero(outcomes).tolist() == [10, 21, 32]


@pytest.mark.parametrize("game", ["ALE/Breakout-v5", "Breakout-v0"])
def test_breakout_ends_with_its_fifth_lost_life(game: str, open_lanes: Callable[..., Lanes]) -> None:
    lanes = open_lanes(game, 1)
    draws, lost = np.random.default_rng(0), 0
    for _ in range(2_000):
        outcome = lanes.step(draws.integers(4, size=1))
        lost += int(outcome.life_lost[0])
        if outcome.terminated[0]:
            break
        assert lanes.episodes[0] == 0
    assert outcome.terminated[0] and outcome.life_lost[0] and lost == 5
    assert lanes.episodes[0] == 1 and not lanes.states[..., 1].any()
    # The next episode starts with all lives, which must not count as a lost life.
    assert not lanes.step(np.zeros(1, np.int64)).life_lost[0]


def test_game_without_lives_loses_no_life(open_lanes: Callable[..., Lanes]) -> None:
    lanes = open_lanes("ALE/Pong-v5", 1, frames_limit=600)
    experience = play_at_random(lanes, 200, 0)
    assert not experience.life_lost.any() and experience.truncated.any() and (experience.rewards == -1).any()


@pytest.mark.parametrize("game", ["ALE/Breakout-v5", "Breakout-v0"])
def test_lane_is_independent_of_other_lanes(game: str, open_lanes: Callable[..., Lanes]) -> None:
    three = open_lanes(game, 3)
    alone = open_lanes(game, [LaneHistory(2, 2, np.zeros(0, np.uint8))])
    draws = np.random.default_rng(0)
    for _ in range(60):
        actions = draws.integers(4, size=3)
        three.step(actions)
        alone.step(actions[2:])
        assert np.array_equal(three.states[2], alone.states[0])


@pytest.mark.parametrize("game", ["ALE/Breakout-v5", "Breakout-v0"])
def test_seed_and_episode_determine_the_game(game: str, open_lanes: Callable[..., Lanes]) -> None:
    first, again, other = open_lanes(game, 2), open_lanes(game, 2), open_lanes(game, 2, seed=SEED + 1)
    actions = np.random.default_rng(0).integers(4, size=60)
    futures = []
    for lanes in (first, again, other):
        seen = []
        for action in actions:
            lanes.step(np.array([action, action]))
            seen.append(lanes.states.copy())
        futures.append(np.stack(seen))
    assert np.array_equal(futures[0], futures[1])
    assert not np.array_equal(futures[0], futures[2])
    assert not np.array_equal(futures[0][:, 0], futures[0][:, 1])


def test_gymnasium_frames_are_resized_screens(open_lanes: Callable[..., Lanes]) -> None:
    lanes = open_lanes("Breakout-v0", 1)
    with pytest.warns(DeprecationWarning, match="out of date"):
        game = gymnasium.make("Breakout-v0", obs_type="grayscale", disable_env_checker=True)
    screen, _ = game.reset(seed=0)
    game.close()
    assert np.array_equal(lanes.states[0, ..., 0], small_frames(screen[None])[0])


def test_frames_of_both_backends_show_the_same_screen(open_lanes: Callable[..., Lanes]) -> None:
    native, tutorial = open_lanes("ALE/Breakout-v5", 1), open_lanes("Breakout-v0", 1)
    difference = np.abs(native.states[..., 0].astype(int) - tutorial.states[..., 0])
    assert difference.mean() < 2 and native.states[..., 0].std() > 20


def test_states_advance_by_one_frame_with_its_trace(open_lanes: Callable[..., Lanes]) -> None:
    lanes = open_lanes("ALE/Breakout-v5", 2)
    assert lanes.states.shape == (2, 105, 80, 2) and lanes.states.dtype == np.uint8
    assert not lanes.states[..., 1].any()
    last = lanes.states.copy()
    for _ in range(12):
        outcome = lanes.step(np.array([1, 2]))
        moved = np.abs(lanes.states[..., 0].astype(int) - last[..., 0]) > 20
        assert np.array_equal(lanes.states[..., 1] == 255, moved)
        last = lanes.states.copy()
    assert outcome.rewards.dtype == np.float32
    assert [getattr(outcome, name).dtype for name in ("life_lost", "terminated", "truncated")] == [bool] * 3


def test_threads_do_not_change_the_result(open_lanes: Callable[..., Lanes]) -> None:
    assert_same_future(open_lanes("ALE/Breakout-v5", 3, threads=1), open_lanes("ALE/Breakout-v5", 3, threads=8), 30)


@pytest.mark.parametrize("game", ["ALE/Breakout-v5", "Breakout-v0", "BreakoutNoFrameskip-v4", "ALE/Pong-v5"])
def test_check_game_accepts_known_games(game: str) -> None:
    check_game(game)
    assert game in game_names()


@pytest.mark.parametrize(
    ("game", "near"),
    [
        ("ALE/Brekout-v5", "ALE/Breakout-v5"),
        ("ale/breakout-v5", "ALE/Breakout-v5"),
        ("Breakout", "Breakout-v"),
        ("Breakout-v5", "Breakout-v"),
        ("qqqqqqqqqq", "use the gymnasium id of an Atari game, such as ALE/Breakout-v5"),
        ("CartPole-v1", "unknown game"),
        ("Breakout-ram-v0", "unknown game"),
    ],
)
def test_check_game_names_similar_games(game: str, near: str) -> None:
    with pytest.raises(ValueError, match="unknown game") as caught:
        check_game(game)
    message = str(caught.value)
    assert repr(game) in message and near in message and "\n" not in message


def test_game_settings_refuse_unknown_game() -> None:
    with pytest.raises(ValueError, match="unknown game 'Chess-v1'"):
        GameSettings("Chess-v1")


def test_frames_of_games_without_a_vector_environment_are_not_pooled() -> None:
    with pytest.raises(ValueError, match="Breakout-v0 has no frame_pooling; use a game with an id ALE/…"):
        GameSettings("Breakout-v0", frame_pooling=True)


@pytest.mark.parametrize(
    ("game", "title"),
    [
        ("ALE/Breakout-v5", "Breakout"),
        ("Breakout-v0", "Breakout"),
        ("BreakoutDeterministic-v4", "Breakout"),
        ("SpaceInvadersNoFrameskip-v4", "SpaceInvaders"),
    ],
)
def test_game_title_has_no_prefix_and_version(game: str, title: str) -> None:
    assert game_title(game) == title


@pytest.mark.parametrize(
    ("game", "names"),
    [
        ("ALE/Breakout-v5", ["NOOP", "FIRE", "RIGHT", "LEFT"]),
        ("Breakout-v0", ["NOOP", "FIRE", "RIGHT", "LEFT"]),
        ("ALE/Freeway-v5", ["NOOP", "UP", "DOWN"]),
    ],
)
def test_action_names_are_in_order(game: str, names: list[str]) -> None:
    assert action_names(game) == names


def first_noops(experience: Experience, lane: int, episode: int) -> int:
    """Number of no-ops at the start of an episode; the policy of this test never selects a no-op."""
    actions = experience.actions[experience.episode[:, lane] == episode, lane]
    return int((actions != 0).argmax())


@pytest.mark.parametrize("game", ["ALE/Breakout-v5", "Breakout-v0"])
def test_episodes_start_with_their_number_of_noops(
    game: str, open_lanes: Callable[..., Lanes], seeded_after: Callable[[int], None]
) -> None:
    """Restored lanes continue the no-ops of an episode."""
    seeded_after(150)
    lanes = open_lanes(game, 3, noop_max=30, frames_limit=200)
    experience = play_at_random(lanes, 200, 0, best=2, epsilon=0.0)
    started = [(lane, int(each)) for lane in range(3) for each in np.unique(experience.episode[:, lane])]
    whole = started[:-1]
    found = [first_noops(experience, lane, episode) for lane, episode in whole]
    assert found == noop_starts(SEED, np.array([episode for _, episode in whole]), 30).tolist()
    assert len(whole) >= 8 and len(set(found)) > 4
    for steps in (5, 190):  # during the no-ops, and after a lane was seeded again
        part = Experience(
            **{
                name: array[:steps] if name != "bootstrap_q_values" else array
                for name, array in vars(experience).items()
            }
        )
        histories, _ = advance(first_histories(3), part, 0)
        restored = open_lanes(game, histories, noop_max=30, frames_limit=200)
        for step in range(steps, min(steps + 30, 200)):
            assert np.array_equal(restored.states, experience.states[step])
            actions = restored.with_noops(np.full(3, 2))
            assert np.array_equal(actions, experience.actions[step])
            restored.step(actions)


@pytest.mark.parametrize("game", ["ALE/Breakout-v5", "Breakout-v0"])
def test_full_action_set_has_18_working_actions(game: str, open_lanes: Callable[..., Lanes]) -> None:
    lanes = open_lanes(game, 2, full_action_set=True)
    assert lanes.action_names == action_names(game, full_action_set=True)
    assert len(set(lanes.action_names)) == 18 and lanes.action_names[17] == "DOWNLEFTFIRE"
    minimal = open_lanes(game, 2)
    for _ in range(60):  # Breakout has no UPFIRE: it is the same as FIRE
        for wide, narrow in (("UPFIRE", "FIRE"), ("RIGHT", "RIGHT")):
            lanes.step(np.full(2, lanes.action_names.index(wide)))
            minimal.step(np.full(2, minimal.action_names.index(narrow)))
            assert np.array_equal(lanes.states, minimal.states)
    experience = play_at_random(lanes, 40, 0)
    assert experience.q_values.shape[2] == 18 and experience.actions.max() > 3


def test_lanes_are_closed_only_if_their_block_fails() -> None:
    lanes = Lanes(GameSettings("ALE/Pong-v5"), first_histories(1))
    games = weakref.ref(lanes._games)
    with closed_on_failure([lanes]):
        lanes.step(np.zeros(1, np.int64))
    assert games() is not None
    with pytest.raises(KeyboardInterrupt), closed_on_failure([lanes]):
        raise KeyboardInterrupt
    assert games() is None
