"""The preset `tutorial` against numbers which the tutorial's own program computed, stored in `data`.

The environment variable PARITY_DATA names another directory of files in the same format.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from dqn.config import make_config
from dqn.envs.experience import Experience, Targets
from dqn.envs.observations import MotionTracer, gray_frames, small_frames
from dqn.learning.optimizers import TensorFlowRMSprop
from dqn.learning.replay import balanced_batches, balanced_sizes
from dqn.learning.sweep import SweepRule, backward_sweep

DATA = Path(os.environ.get("PARITY_DATA") or Path(__file__).parent / "data")
TUTORIAL = make_config("tutorial")


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(DATA / f"{name}.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def golden_sweep() -> dict[str, np.ndarray]:
    return load("sweep")


@pytest.fixture(scope="module")
def swept(golden_sweep: dict[str, np.ndarray]) -> Targets:
    q_values, actions = golden_sweep["in_q_values"], golden_sweep["in_actions"]
    played = len(q_values) - 1  # the tutorial does not update the last state; here it is the bootstrap state
    assert q_values.dtype == np.float64 and np.array_equal(actions, actions.astype(np.uint8))
    experience = Experience(
        states=np.zeros((0, 1, 105, 80, 2), np.uint8),
        q_values=q_values[:played, None],
        bootstrap_q_values=q_values[played:],
        actions=actions[:played, None].astype(np.uint8),
        rewards=golden_sweep["in_rewards"][:played, None],
        life_lost=golden_sweep["in_end_life"][:played, None],
        terminated=golden_sweep["in_end_episode"][:played, None],
        truncated=np.zeros((played, 1), bool),
        episode=np.zeros((played, 1), np.int64),
    )
    config = make_config("tutorial", {"discount": float(golden_sweep["in_discount"])})
    return backward_sweep(experience, SweepRule.of(config))


def test_preset_has_the_constants_of_the_tutorial() -> None:
    found = (TUTORIAL.discount, TUTORIAL.reward_clip, TUTORIAL.error_threshold, TUTORIAL.batch_size)
    assert found == (0.97, 1.0, 0.1, 128)


def test_sweep_gives_the_q_values_of_the_tutorial(golden_sweep: dict[str, np.ndarray], swept: Targets) -> None:
    q_values = np.concatenate([swept.q_values[:, 0], golden_sweep["in_q_values"][-1:]])
    np.testing.assert_allclose(q_values, golden_sweep["out_q_values"], rtol=0, atol=1e-6)


def test_sweep_gives_the_errors_of_the_tutorial(golden_sweep: dict[str, np.ndarray], swept: Targets) -> None:
    errors = np.append(swept.estimation_errors, 0.0)
    np.testing.assert_allclose(errors, golden_sweep["out_estimation_errors"], rtol=0, atol=1e-6)


def test_batches_are_balanced_as_in_the_tutorial(golden_sweep: dict[str, np.ndarray], swept: Targets) -> None:
    threshold, batch_size = TUTORIAL.error_threshold, TUTORIAL.batch_size
    errors = np.append(swept.estimation_errors, 0.0)
    high = int((errors > threshold).sum())
    low = len(errors) - high
    assert high == golden_sweep["out_num_high_error"]
    assert golden_sweep["out_batch_high"] + golden_sweep["out_batch_low"] == batch_size
    # The tutorial crashes if a group is smaller than its share of a batch; here the other group fills the batch.
    size = min(batch_size, len(errors))
    expected = int(np.clip(golden_sweep["out_batch_high"], size - low, high))
    assert balanced_sizes(high, low, batch_size) == (expected, size - expected)
    batch = next(balanced_batches(errors, threshold, batch_size, np.random.default_rng(0)))
    assert (errors[batch] > threshold).sum() == expected and len(batch) == size


@pytest.mark.parametrize("name", ["epsilon", "learning_rate", "loss_limit", "max_epochs", "replay_fraction"])
def test_schedule_equals_the_one_of_the_tutorial(name: str) -> None:
    golden = load("schedules")
    values = [TUTORIAL.scheduled(int(states))[name] for states in golden["iterations"]]
    np.testing.assert_allclose(values, golden[name], rtol=0, atol=1e-12)


def test_rmsprop_step_equals_the_one_of_tensorflow() -> None:
    golden = load("rmsprop")
    weights = torch.tensor(golden["out_weights"][0])
    optimizer = TensorFlowRMSprop([weights], lr=float(golden["in_learning_rate"]))
    for gradient, expected in zip(golden["in_gradients"], golden["out_weights"][1:], strict=True):
        weights.grad = torch.tensor(gradient)
        optimizer.step()
        np.testing.assert_allclose(weights.numpy(), expected, rtol=0, atol=1e-6)


def test_motion_tracer_gives_the_states_of_the_tutorial() -> None:
    golden = load("motion_tracer")
    expected = golden["out_states"]
    frames = small_frames(gray_frames(golden["in_frames"]))
    tracer = MotionTracer(1)
    tracer.reset(frames[:1], np.array([True]))
    states = [tracer.states[0].copy()]
    for frame in frames[1:]:
        tracer.advance(frame[None])
        states.append(tracer.states[0].copy())
    found = np.stack(states)
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert np.abs(found[..., 0].astype(int) - expected[..., 0]).max() <= 2
    assert (found[..., 1] == expected[..., 1]).mean() >= 0.995
    assert expected[..., 1].any()  # something moves; without motion the line above tests nothing
