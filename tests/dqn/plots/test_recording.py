from __future__ import annotations

import numpy as np
import pytest

from dqn.config import make_config
from dqn.envs.histories import first_histories
from dqn.envs.lanes import Lanes
from dqn.envs.observations import gray_frames, small_frames
from dqn.evaluation.evaluation import Protocol, game_settings
from dqn.plots.recording import HEIGHT, WIDTH, Shot, draw_shot, record_episode

LIMITED = make_config("fast", {"episode_frames_limit": 2_000})


def q_values_of(states: np.ndarray) -> np.ndarray:
    """Q-values of four actions, which depend on the state."""
    return np.stack([states[:, at::7, ::3].mean((1, 2, 3)) for at in range(4)], axis=1).astype(np.float32)


@pytest.mark.parametrize("game", ["ALE/Breakout-v5", "Breakout-v0"])
def test_color_screens_match_states(game: str) -> None:
    protocol = Protocol(game, 1, 0.5, seed=3)
    shots = [shot for shot, _ in zip(record_episode(q_values_of, protocol, LIMITED), range(400), strict=False)]
    lanes = Lanes(game_settings(protocol, LIMITED), first_histories(1), threads=1)
    differences, chance = [], []
    for shot, other in zip(shots, [*shots[30:], *shots[:30]], strict=True):
        frame = lanes.states[0, ..., 0].astype(float)
        assert np.array_equal(shot.motion, lanes.states[0, ..., 1])
        differences.append(np.abs(small_frames(gray_frames(shot.screen)[None])[0] - frame).max())
        chance.append(np.abs(small_frames(gray_frames(other.screen)[None])[0] - frame).max())
        lanes.step(np.array([shot.action]))
    lanes.close()
    assert max(differences) < 60 < np.median(chance), (max(differences), np.median(chance))
    assert len({shot.screen.tobytes() for shot in shots}) > len(shots) / 2, "the screens of most steps differ"


def test_recording_has_one_complete_episode() -> None:
    shots = list(record_episode(q_values_of, Protocol("ALE/Breakout-v5", 1, 1.0, seed=1), make_config()))
    assert [shot.step for shot in shots] == list(range(len(shots)))
    scores = [shot.score for shot in shots]
    assert scores == sorted(scores)
    again = list(record_episode(q_values_of, Protocol("ALE/Breakout-v5", 1, 1.0, seed=1), make_config()))
    assert [shot.action for shot in again] == [shot.action for shot in shots]


@pytest.mark.parametrize("actions", [3, 18])
def test_bars_show_q_values_and_chosen_action(actions: int) -> None:
    """The bar of the chosen action has its own color, and bars grow with the Q-values."""
    names = tuple(f"DOWNRIGHTFIRE{number}" for number in range(actions))
    values = np.linspace(0, 1, actions, dtype=np.float32)
    shot = Shot(np.zeros((210, 160, 3), np.uint8), np.zeros((105, 80), np.uint8), values, 1, 12.0, 7)
    picture = draw_shot(shot, names, (0.0, 1.0)).astype(int)
    assert picture.shape == (HEIGHT, WIDTH, 3)
    chosen = (picture == (0xD9, 0x62, 0x2B)).all(2)
    bars = (picture == (0xA9, 0xC4, 0xDD)).all(2)
    lengths = [length for length in (chosen | bars).sum(1) if length]
    assert chosen.any() and lengths == sorted(lengths)
    first = int(np.flatnonzero((chosen | bars).any(0))[0])
    assert (picture[60:, first - 3 : first] == 255).all(), "no name overlaps a bar"
