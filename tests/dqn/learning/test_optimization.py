from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import dqn.learning.learner
from dqn.config import TrainConfig, make_config
from dqn.hardware import prepare
from dqn.learning.learner import Learner
from dqn.learning.networks import make_network
from dqn.learning.optimization import train_on
from dqn.learning.replay import ReplayMemory

CPU = torch.device("cpu")
MakeMemory = Callable[[int], ReplayMemory]


def cpu_config(**overrides: Any) -> TrainConfig:
    return make_config("fast", {"device": "cpu", "precision": "float32", "learning_rate": 1e-3, **overrides})


def weights_of(learner: Learner) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in learner.average_network.parameters()])


class ScriptedLearner:
    """Does not train; returns a given loss for each batch."""

    device = CPU

    def __init__(self, config: TrainConfig, losses: Callable[[int], float]) -> None:
        self.config, self._losses, self.batches = config, losses, []
        self.learning_rate, self.rates, self.dropout = 0.0, [], []

    def train_batch(
        self, states: torch.Tensor, targets: torch.Tensor, actions: torch.Tensor, dropout: torch.Generator | None = None
    ) -> torch.Tensor:
        self.batches.append(states[:, 0, 0, 0].tolist())
        self.dropout.append(dropout)
        self.rates.append(self.learning_rate)
        return torch.tensor(self._losses(len(self.batches)))

    def set_learning_rate(self, learning_rate: float) -> None:
        self.learning_rate = learning_rate

    def update_copies(self) -> None:
        pass


def tiny_memory(states: int) -> ReplayMemory:
    return ReplayMemory(
        states=torch.arange(states, dtype=torch.uint8)[:, None, None, None],
        q_values=torch.zeros(states, 2),
        actions=torch.zeros(states, dtype=torch.int64),
        estimation_errors=np.zeros(states, np.float32),
    )


# 20 states in batches of 5: an epoch is 4 batches. The mean is over 100 losses, with zeros before the first.
@pytest.mark.parametrize(
    ("loss", "limit", "min_epochs", "max_epochs", "batches"),
    [
        (lambda batch: 1.0, 0.0, 1, 3, 12),  # no limit: all epochs
        (lambda batch: 1.0, 0.0, 1, 2.6, 10),
        (lambda batch: 1.0, 0.0, 1, 0.1, 1),  # at least one batch
        (lambda batch: 1.0, 0.5, 1, 50, 6),  # low from the start, because the history starts as zeros
        (lambda batch: 1.0, 0.5, 3, 50, 14),
        (lambda batch: 1.0, 0.5, 0, 50, 2),
        (lambda batch: 1.0, 0.5, 9, 2, 8),  # max_epochs takes precedence
        (lambda batch: 8.4, 0.5, 1, 6, 24),  # 6 batches of 8.4 are a mean of 0.504: not below
        (lambda batch: 8.3, 0.5, 1, 6, 6),
        (lambda batch: 10.0 * (batch <= 10), 0.5, 1, 50, 106),  # the high losses leave the window one by one
    ],
)
def test_train_on_stops_at_loss_limit_or_max_epochs(
    loss: Callable[[int], float], limit: float, min_epochs: float, max_epochs: float, batches: int
) -> None:
    learner: Any = ScriptedLearner(cpu_config(batch_size=5, min_epochs=min_epochs), loss)
    scheduled = {"learning_rate": 0.1, "max_epochs": max_epochs, "loss_limit": limit}
    result = train_on(learner, tiny_memory(20), 1, scheduled)
    assert len(learner.batches) == len(result.losses) == batches
    assert (result.states_trained, result.epochs) == (batches * 5, batches / 4)
    assert result.losses.dtype == np.float32
    np.testing.assert_allclose(result.losses, [loss(batch) for batch in range(1, batches + 1)])


def test_train_on_sets_learning_rate_and_reports() -> None:
    learner: Any = ScriptedLearner(cpu_config(batch_size=5), lambda batch: 1.0)
    reported = []
    scheduled = {"learning_rate": 0.03, "max_epochs": 2, "loss_limit": 0}
    train_on(learner, tiny_memory(10), 1, scheduled, on_batch=lambda done, batches: reported.append((done, batches)))
    assert learner.learning_rate == 0.03
    assert reported == [(1, 4), (2, 4), (3, 4), (4, 4)]


# Epochs of 4 batches. The learning rate is adapted to the mean loss after the second and each later epoch.
@pytest.mark.parametrize(
    ("epochs", "rates"),
    [
        ([8, 4, 2, 1, 1], [1, 1, 1.05, 1.05**2, 1.05**3]),
        ([1, 2, 1, 3, 2], [1, 1, 0.5, 0.5 * 1.05, 0.25 * 1.05]),
        ([1, 1, 1], [1, 1, 0.5]),
    ],
)
def test_adapted_learning_rate_follows_the_loss(epochs: list[float], rates: list[float]) -> None:
    for adapts in (True, False):
        learner: Any = ScriptedLearner(
            cpu_config(batch_size=5, adapt_learning_rate=adapts),
            lambda batch: float(epochs[(batch - 1) // 4] + batch % 2),
        )
        scheduled = {"learning_rate": 0.125, "max_epochs": len(epochs), "loss_limit": 0}
        for cycle in (1, 2):  # each optimization run starts from the schedule
            learner.batches.clear()
            learner.rates.clear()
            train_on(learner, tiny_memory(20), cycle, scheduled)
            expected = rates if adapts else [1] * len(epochs)
            assert learner.rates == pytest.approx([0.125 * rate for rate in expected for _ in range(4)])


@pytest.mark.parametrize("balanced", [False, True])
def test_memory_smaller_than_batch_is_one_batch(balanced: bool) -> None:
    learner: Any = ScriptedLearner(cpu_config(batch_size=64, balanced_sampling=balanced), lambda batch: 1.0)
    memory = tiny_memory(3)
    memory.estimation_errors[1] = 9
    result = train_on(learner, memory, 1, {"learning_rate": 0.1, "max_epochs": 2, "loss_limit": 0})
    assert [sorted(batch) for batch in learner.batches] == [[0, 1, 2]] * 2
    assert (result.states_trained, result.epochs) == (6, 2)


def test_balanced_sampling_is_half_high_errors() -> None:
    learner: Any = ScriptedLearner(cpu_config(batch_size=8, balanced_sampling=True), lambda batch: 1.0)
    memory = tiny_memory(40)
    memory.estimation_errors[:5] = 0.2
    train_on(learner, memory, 1, {"learning_rate": 0.1, "max_epochs": 2, "loss_limit": 0})
    assert [sum(state < 5 for state in batch) for batch in learner.batches] == [4] * 10


def test_batches_depend_on_seed_and_cycle() -> None:
    def batches(seed: int, cycle: int) -> list[list[int]]:
        learner: Any = ScriptedLearner(cpu_config(batch_size=5, seed=seed), lambda batch: 1.0)
        train_on(learner, tiny_memory(20), cycle, {"learning_rate": 0.1, "max_epochs": 2, "loss_limit": 0})
        return learner.batches

    assert batches(0, 1) == batches(0, 1)
    assert batches(0, 1) != batches(0, 2) and batches(0, 1) != batches(1, 1)


def test_learner_fits_toy_memory(toy_memory: MakeMemory) -> None:
    memory = toy_memory(4)
    config = cpu_config(
        optimizer="adam", learning_rate=3e-4, batch_size=4, max_epochs=30, loss="all-actions", ema_decay=0
    )
    learner = Learner(config, 3, CPU)
    before = np.abs(learner.estimate(memory.states.numpy()) - memory.q_values.numpy()).mean()
    result = train_on(learner, memory, 1, config.scheduled(0))
    after = np.abs(learner.estimate(memory.states.numpy()) - memory.q_values.numpy()).mean()
    assert after < before / 5 and result.losses[-1] < result.losses[0] / 20


def test_trained_weights_depend_on_the_seed(toy_memory: MakeMemory) -> None:
    def trained(seed: int) -> torch.Tensor:
        config = cpu_config(batch_size=2, max_epochs=1, seed=seed)
        learner = Learner(config, 3, CPU)
        train_on(learner, toy_memory(4), 1, config.scheduled(0))
        return weights_of(learner)

    first = trained(3)
    assert torch.equal(first, trained(3))
    assert not torch.equal(first, trained(4))


def test_dropout_depends_on_seed_cycle_and_batch() -> None:
    def draws(seed: int, cycle: int) -> list[float]:
        learner: Any = ScriptedLearner(cpu_config(batch_size=5, seed=seed, dropout=0.5), lambda batch: 1.0)
        train_on(learner, tiny_memory(20), cycle, {"learning_rate": 0.1, "max_epochs": 1, "loss_limit": 0})
        return [torch.rand(1, generator=each).item() for each in learner.dropout]

    assert draws(0, 1) == draws(0, 1)
    assert len({*draws(0, 1), *draws(0, 2), *draws(1, 1)}) == 12, "every batch has its own draws"


def test_dropout_is_independent_of_global_generator(toy_memory: MakeMemory) -> None:
    def trained(**overrides: Any) -> torch.Tensor:
        learner = Learner(cpu_config(batch_size=2, network="small", **overrides), 3, CPU)
        torch.rand(3)
        train_on(learner, toy_memory(4), 1, {"learning_rate": 1e-3, "max_epochs": 2, "loss_limit": 0.0})
        return weights_of(learner)

    first = trained(dropout=0.5)
    assert torch.equal(first, trained(dropout=0.5)) and not torch.equal(first, trained())


def test_estimate_does_not_drop_out(toy_memory: MakeMemory) -> None:
    states = toy_memory(4).states.numpy()
    learner, plain = (Learner(cpu_config(network="small", dropout=share), 3, CPU) for share in (0.5, 0.0))
    assert np.array_equal(learner.estimate(states), plain.estimate(states))
    with torch.no_grad():
        dropped = learner.average_network(torch.from_numpy(states), torch.Generator().manual_seed(0)).numpy()
    assert np.abs(dropped - plain.estimate(states)).max() > 0.01


@pytest.mark.parametrize("limit", [0.0, 1e-3, 1e9])
def test_gradients_are_scaled_to_max_grad_norm(limit: float, toy_memory: MakeMemory) -> None:
    batch = toy_memory(2).batch(np.arange(2), CPU)
    norms = {}
    for each in (0.0, limit):
        learner = Learner(cpu_config(max_grad_norm=each), 3, CPU)
        learner.train_batch(*batch)
        # RAdam's average of gradients is a tenth of the first one.
        gradients = [10 * learner.optimizer.state[weight]["exp_avg"] for weight in learner.online_network.parameters()]
        norms[each] = torch.nn.utils.get_total_norm(gradients).item()
    assert norms[0.0] > 0.1
    assert norms[limit] == pytest.approx(min(limit or np.inf, norms[0.0]), rel=1e-3)


def test_learning_rate_0_keeps_the_weights(toy_memory: MakeMemory) -> None:
    learner = Learner(cpu_config(), 3, CPU)
    before = weights_of(learner)
    learner.set_learning_rate(0)
    loss = learner.train_batch(*toy_memory(2).batch(np.arange(2), CPU))
    assert torch.equal(weights_of(learner), before) and not loss.requires_grad
    learner.set_learning_rate(1e-3)
    learner.train_batch(*toy_memory(2).batch(np.arange(2), CPU))
    assert not torch.equal(weights_of(learner), before)


def test_learning_rate_is_set_in_every_group() -> None:
    learner: Any = SimpleNamespace(optimizer=SimpleNamespace(param_groups=[{"lr": 1}, {"lr": 2}]))
    Learner.set_learning_rate(learner, 0.25)
    assert learner.optimizer.param_groups == [{"lr": 0.25}, {"lr": 0.25}]


def test_bfloat16_learns_nearly_as_float32(toy_memory: MakeMemory) -> None:
    """The weights of the online and the average network are float32."""
    # Two states and few steps, because emulated bfloat16 is very slow.
    memory, losses = toy_memory(2), {}
    for precision in ("float32", "bfloat16"):
        config = cpu_config(precision=precision, batch_size=2, max_epochs=8, learning_rate=2e-4)
        learner = Learner(config, 3, CPU)
        losses[precision] = train_on(learner, memory, 1, config.scheduled(0)).losses
        for network in (learner.online_network, learner.average_network):
            assert {weight.dtype for weight in network.parameters()} == {torch.float32}
        estimates = learner.estimate(memory.states.numpy())
        assert estimates.dtype == np.float32
        with torch.no_grad():
            exact = learner.average_network(memory.states).numpy()
        np.testing.assert_allclose(estimates, exact, rtol=0.05, atol=0.05)
    assert (losses["float32"] != losses["bfloat16"]).any()
    for each in losses.values():
        assert each[-1] < 0.5 * each[0]
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=0.2, atol=0.05)


def trained_as(toy_memory: MakeMemory, device: torch.device, **overrides: Any) -> tuple[np.ndarray, torch.Tensor]:
    """Losses and weights of a short training of a small network."""
    config = cpu_config(batch_size=2, network="small", max_epochs=3, **{"device": device.type, **overrides})
    learner = Learner(config, 3, device)
    result = train_on(learner, toy_memory(4), 1, config.scheduled(0))
    return result.losses, weights_of(learner).cpu()


def test_compiled_training_equals_eager(toy_memory: MakeMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    # aot_eager does what inductor does, except that it generates no kernels, which would take half a minute.
    monkeypatch.setattr(dqn.learning.learner, "_COMPILER", "aot_eager")
    losses, weights = trained_as(toy_memory, CPU, compiled="yes")
    plain_losses, plain_weights = trained_as(toy_memory, CPU, compiled="no")
    np.testing.assert_allclose(losses, plain_losses, rtol=1e-4)
    torch.testing.assert_close(weights, plain_weights, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("network", ["residual", "nature", "nips", "small"])
def test_compiled_loss_does_not_view_other_dtypes(
    network: str, toy_memory: MakeMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inductor of torch 2.11 fails to lower a view of a tensor as another dtype."""
    seen: list[Any] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        seen.extend(graph.graph.nodes)
        return graph.forward

    monkeypatch.setattr(dqn.learning.learner, "_COMPILER", backend)
    compiled, eager = (Learner(cpu_config(network=network, compiled=choice), 3, CPU) for choice in ("yes", "no"))
    batch = toy_memory(2).batch(np.arange(2), CPU)
    torch.testing.assert_close(compiled.loss_and_gradients(*batch)[0], eager.loss_and_gradients(*batch)[0])
    views = [node for node in seen if "view" in str(node.target)]
    assert views and not [node for node in views if any(isinstance(each, torch.dtype) for each in node.args)]


def test_compiling_does_not_warn_about_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inductor advises TensorFloat32, but float32 is computed in float32."""
    from torch._inductor import compile_fx

    Learner(cpu_config(network="small", compiled="yes"), 3, CPU)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    compile_fx._warn_tf32_disabled.__wrapped__()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
@pytest.mark.parametrize("optimizer", ["radam", "adam", "rmsprop"])
@pytest.mark.usefixtures("torch_flags")
def test_compiled_gpu_training_is_repeatable(optimizer: str, toy_memory: MakeMemory) -> None:
    gpu = prepare(cpu_config(device="cuda", threads=1))
    made = [trained_as(toy_memory, gpu, compiled="yes", optimizer=optimizer) for _ in range(2)]
    assert np.array_equal(made[0][0], made[1][0]) and torch.equal(made[0][1], made[1][1])
    np.testing.assert_allclose(made[0][0], trained_as(toy_memory, CPU, optimizer=optimizer)[0], rtol=0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature")
def test_train_batch_does_not_synchronize_with_gpu(toy_memory: MakeMemory) -> None:
    gpu = torch.device("cuda")
    learner = Learner(cpu_config(device="cuda", network="small"), 3, gpu)
    batch = toy_memory(4).on(gpu).batch(np.arange(4), gpu)
    learner.train_batch(*batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        learner.train_batch(*batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_average_network_is_an_ema_and_estimates(precision: str, toy_memory: MakeMemory) -> None:
    memory = toy_memory(4)
    settings = {"batch_size": 2, "network": "small", "max_epochs": 1.5, "precision": precision}
    plain, averaging = (Learner(cpu_config(**settings, ema_decay=decay), 3, CPU) for decay in (0, 0.75))
    average, batches = weights_of(plain), [np.array([0, 1]), np.array([2, 3]), np.array([1, 2])]
    for batch in batches:
        losses = [learner.train_batch(*memory.batch(batch, CPU)) for learner in (plain, averaging)]
        assert losses[0] == losses[1], "the average does not change the training"
        average = 0.75 * average + 0.25 * weights_of(plain)
    torch.testing.assert_close(weights_of(averaging), average)
    averaging.update_copies()
    states = memory.states.numpy()
    alone = make_network(averaging.config, 3)
    alone.load_state_dict(averaging.average_network.state_dict())
    with torch.no_grad():
        expected = (alone.in_bfloat16() if precision == "bfloat16" else alone)(memory.states).numpy()
    np.testing.assert_array_equal(averaging.estimate(states), expected)
    assert np.abs(averaging.estimate(states) - plain.estimate(states)).max() > 1e-3


def test_train_on_updates_the_acting_network(toy_memory: MakeMemory) -> None:
    config = cpu_config(batch_size=2, network="small", ema_decay=0.5, precision="bfloat16")
    learner, memory = Learner(config, 3, CPU), toy_memory(4)
    train_on(learner, memory, 1, config.scheduled(0))
    found = learner.estimate(memory.states.numpy())
    learner.update_copies()
    np.testing.assert_array_equal(learner.estimate(memory.states.numpy()), found)
    with torch.no_grad():
        expected = learner.average_network.in_bfloat16()(memory.states).numpy()
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("batch_size", [32, 50])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_parts_of_a_batch_give_the_gradients_of_the_batch(batch_size: int, precision: str) -> None:
    """Two threads compute one part each; 50 states are divided into 17, 17 and 16."""
    draws = torch.Generator().manual_seed(0)
    states = torch.randint(0, 255, (batch_size, 105, 80, 2), dtype=torch.uint8, generator=draws)
    targets = torch.randn(batch_size, 4, generator=draws)
    actions = torch.randint(0, 4, (batch_size,), generator=draws)
    whole, parts = (
        Learner(cpu_config(threads=threads, network="small", precision=precision), 4, CPU) for threads in (1, 3)
    )
    assert parts._batch_parts(batch_size, None) == batch_size // 16
    (loss, gradients), (other_loss, others) = (
        learner.loss_and_gradients(states, targets, actions) for learner in (whole, parts)
    )
    tolerance = 2e-4 if precision == "float32" else 2e-2
    torch.testing.assert_close(other_loss, loss, rtol=tolerance, atol=0)
    for gradient, other in zip(gradients, others, strict=True):
        difference = torch.linalg.vector_norm(other - gradient.float())
        assert difference <= tolerance * torch.linalg.vector_norm(gradient.float())
    repeated = parts.loss_and_gradients(states, targets, actions)
    assert all(torch.equal(a, b) for a, b in zip(repeated[1], others, strict=True))


def test_batch_with_dropout_is_not_divided() -> None:
    learner = Learner(cpu_config(threads=2, network="small", dropout=0.5), 4, CPU)
    assert learner._batch_parts(128, torch.Generator()) == 1
