"""Screens of plain environments: the same states as those of `Lanes`, and the same actions as in a recording."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from dqn.config import make_config
from dqn.envs.backends import open_env, open_games
from dqn.envs.games import GameSettings, make_game
from dqn.envs.observations import area_frames, emulator_gray
from dqn.evaluation.evaluation import Protocol, game_settings
from dqn.evaluation.player import Player
from dqn.plots.recording import record_episode
from dqn.randomness import episode_seeds

FIELDS = {"episode_frames_limit": 1_200}
GAME = "ALE/Breakout-v5"


def q_values_of(states: np.ndarray) -> np.ndarray:
    """Q-values of four actions, which depend on the state."""
    return np.stack([states[:, at::7, ::3].mean((1, 2, 3)) for at in range(4)], axis=1).astype(np.float32)


def seeded(env: gymnasium.Env, seed: int) -> np.ndarray:
    """The first screen of an environment whose emulator has this seed; `reset` derives another one from its seed."""
    ale = env.unwrapped.ale
    ale.setInt("random_seed", seed)
    env.unwrapped.load_game()
    screen, _ = env.reset()
    return screen


@pytest.mark.parametrize("game", [GAME, "ALE/Carnival-v5", "ALE/Pooyan-v5", "ALE/JourneyEscape-v5", "ALE/Klax-v5"])
def test_area_frames_equal_those_of_the_vector_environment(game: str) -> None:
    """The screens of these games have 210, 214, 220, 230 and 250 rows."""
    games, env = open_games(GameSettings(game), 1, 1), make_game(game)
    frames, _ = games.reset(np.ones(1, bool), np.array([123]))
    screen, draws = seeded(env, 123), np.random.default_rng(0)
    for _ in range(80):
        assert np.array_equal(area_frames(emulator_gray(screen)[None]), frames)
        action = draws.integers(env.action_space.n)
        frames, *_ = games.step(np.array([action]))
        screen, *_ = env.step(action)
    games.env.close()
    env.close()


@pytest.mark.parametrize("game", ["ALE/SpaceInvaders-v5", "ALE/Pooyan-v5"])
def test_pooled_frames_are_the_maximum_of_two_screens(game: str) -> None:
    """In Space Invaders a shot is drawn in every second frame only, so single frames differ from the maxima."""
    settings = GameSettings(game, frame_pooling=True)
    games, env, screens = open_games(settings, 1, 1), open_env(settings), make_game(game, obs_type="grayscale")
    frames, _ = games.reset(np.ones(1, bool), np.array([123]))
    pooled, screen, draws, differ = seeded(env, 123), seeded(screens, 123), np.random.default_rng(0), 0
    for _ in range(150):
        assert np.array_equal(area_frames(pooled[None]), frames)
        assert (pooled >= screen).all()
        differ += int((pooled != screen).any())
        action = draws.integers(env.action_space.n)
        frames, _, terminated, *_ = games.step(np.array([action]))
        if terminated[0]:
            break
        pooled, screen = env.step(action)[0], screens.step(action)[0]
    assert differ > 10
    for each in (games.env, env, screens):
        each.close()


@pytest.mark.parametrize("fields", [{}, {"frame_stack": True, "noop_max": 30}, {"game": "Breakout-v0"}])
@pytest.mark.parametrize("obs_type", ["rgb", "grayscale"])
def test_player_plays_the_recorded_episode(fields: dict[str, object], obs_type: str) -> None:
    """A plain environment whose emulator has the same seed gives the same episode: same actions and same score."""
    config = make_config("fast", {**FIELDS, **fields})
    protocol = Protocol(config.game, 1, 0.1, seed=3)
    shots = list(record_episode(q_values_of, protocol, config))
    if config.game == "Breakout-v0":  # its frame skip is random, too, so gymnasium's seed is the one that counts
        env = make_game(config.game, obs_type=obs_type, max_num_frames_per_episode=1_200)
        settings = game_settings(protocol, config)
        screen, _ = env.reset(seed=int(episode_seeds(settings.seed, np.zeros(1, np.int64))[0]))
    else:
        env = gymnasium.make(config.game, obs_type=obs_type, max_num_frames_per_episode=1_200)
        settings = game_settings(protocol, config)
        screen = seeded(env, int(episode_seeds(settings.seed, np.zeros(1, np.int64))[0]))
    player, actions, score, over = Player(q_values_of, config, protocol), [], 0.0, False
    while not over:
        actions.append(player.act(screen))
        screen, reward, terminated, truncated, _ = env.step(actions[-1])
        score, over = score + float(reward), terminated or truncated
    env.close()
    recorded = [shot.action for shot in shots]
    assert actions == recorded[: len(actions)] and len(recorded) - len(actions) in (0, 1)
    assert score >= shots[-1].score


def test_player_numbers_its_episodes_as_dqn_play_does() -> None:
    config, screens = make_config("fast"), np.random.default_rng(0).integers(0, 256, (200, 210, 160), np.uint8)
    player = Player(q_values_of, config, Protocol(GAME, 1, 0.9))
    player.next_episode()
    episodes = []
    for _ in range(2):
        episodes.append([player.act(screen) for screen in screens])
        player.next_episode()
    for seed, actions in enumerate(episodes):
        other = Player(q_values_of, config, Protocol(GAME, 1, 0.9, seed=seed))
        assert actions == [other.act(screen) for screen in screens]
    assert episodes[0] != episodes[1]
    player.next_episode(seed=1)
    assert [player.act(screen) for screen in screens] == episodes[1]
    player.next_episode(seed=1, epsilon=0.0)
    greedy = [player.act(screen) for screen in screens]
    assert greedy != episodes[1] and greedy[0] == int(q_values_of(np.stack([states_of(screens[0])]))[0].argmax())


def states_of(screen: np.ndarray) -> np.ndarray:
    frame = area_frames(screen[None])[0]
    return np.stack([frame, np.zeros_like(frame)], axis=-1)


@pytest.mark.parametrize("shape", [(210, 160, 4), (128,), (84, 84), (4, 210, 160), ()])
def test_player_refuses_what_is_no_screen(shape: tuple[int, ...]) -> None:
    player = Player(q_values_of, make_config("fast"), Protocol(GAME, 1, 0.0))
    with pytest.raises(ValueError, match=r"an observation has the shape .*; it must be a screen of the game"):
        player.act(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match="the type float32"):
        player.act(np.zeros((210, 160), np.float32))
