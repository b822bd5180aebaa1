"""Trained agents by name: the network of a checkpoint, or of a registered model, ready to play."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from dqn.checkpoint import Checkpoint, CheckpointMetadata, restore_learner
from dqn.envs.games import action_names, check_game
from dqn.evaluation.evaluation import Protocol
from dqn.export.inference_spec import ExportedAgent
from dqn.hardware import playable, prepare
from dqn.learning.learner import Learner
from storage.formats.agent_export import CONFIG, read_export
from storage.model_registry import SCHEME, open_shared
from storage.runs import StoredRun, open_run, open_tracking
from storage.selection import find_checkpoint


@dataclass(frozen=True)
class Agent:
    """A trained network on this machine, with the checkpoint and the run that it comes from."""

    name: str
    metadata: CheckpointMetadata
    learner: Learner
    weights: dict[str, Tensor]  # as stored; `learner` may hold them in another precision
    run: StoredRun | None  # None for a directory, whose run may be on another machine
    checkpoint_digest: str
    exported: ExportedAgent | None = None  # what a directory contains

    def protocol(
        self, episodes: int | None = None, epsilon: float | None = None, game: str | None = None, seed: int = 0
    ) -> Protocol:
        """The evaluation protocol of the run, with the given values in place of its own.

        Raises:
            ValueError: a value is out of range, or `game` has other actions than the run's game.
        """
        own = Protocol.of(self.metadata.config)
        if game and game != own.game:
            check_game(game)
            actions = tuple(action_names(game, self.metadata.config.full_action_set))
            if actions != self.metadata.action_names:
                raise ValueError(
                    f"{game} has the actions {', '.join(actions)}; "
                    f"the run {self.name} was trained with {', '.join(self.metadata.action_names)}"
                )
        return Protocol(
            game or own.game,
            own.episodes if episodes is None else episodes,
            own.epsilon if epsilon is None else epsilon,
            seed,
        )


def open_agent(name: str, checkpoint: str = "latest") -> Agent:
    """Load the agent of a run, or one that is registered in MLflow.

    Args:
        name: id or name of a run, `latest`, a registered model such as `models:/Breakout@champion` or
            `models:/Breakout/3`, or a directory that `dqn export` wrote.
        checkpoint: `latest`, `best`, or the number of a cycle. A registered model and a directory have only `latest`.

    Raises:
        ValueError: there is no such run, checkpoint or model.
        StorageError: the checkpoint, the model or the directory is corrupt.
    """
    if is_directory(name):
        if checkpoint != "latest":
            raise ValueError(f"checkpoint is {checkpoint!r}, but {name} has only one; leave it out")
        found = read_export(Path(name))
        loaded = Checkpoint(found.metadata, [], found.weights, {})
        return Agent(name, found.metadata, load_learner(loaded), found.weights, None, found.checkpoint, found)
    tracking = open_tracking()
    if name.startswith(SCHEME):
        if checkpoint != "latest":
            raise ValueError(f"checkpoint is {checkpoint!r}, but {name} has only one; leave it out")
        shared = open_shared(tracking, name)
        loaded, digest = Checkpoint(shared.metadata, [], shared.weights, {}), shared.checkpoint
        run = open_run(shared.run_id)
    else:
        run = open_run(tracking.find_run(name).info.run_id)
        unit = find_checkpoint(run, checkpoint)
        loaded, digest = run.checkpoint(unit), unit.digest
        name = run.name
    return Agent(name, loaded.metadata, load_learner(loaded), loaded.weights, run, digest)


def is_directory(name: str) -> bool:
    """Whether `name` is a directory that `dqn export` wrote, and not a run."""
    return Path(name, CONFIG).is_file()


def find_run_and_cycle(name: str) -> tuple[StoredRun, int | None]:
    """Find the run called `name`; for a registered model, the run and the cycle that it was registered from.

    Raises:
        ValueError: there is no such run or model, or `name` is a directory.
        StorageError: the model is corrupt.
    """
    if is_directory(name):
        raise ValueError(f"{name} is an exported agent, of whose run nothing else is stored there; give a run")
    tracking = open_tracking()
    if name.startswith(SCHEME):
        shared = open_shared(tracking, name)
        return open_run(shared.run_id), shared.metadata.counters.cycle
    return open_run(tracking.find_run(name).info.run_id), None


def load_learner(checkpoint: Checkpoint) -> Learner:
    """Load a checkpoint's network for inference on this machine; the state of the optimizer is left out."""
    config = playable(checkpoint.config)
    metadata = replace(checkpoint.metadata, config=config)
    return restore_learner(replace(checkpoint, metadata=metadata, optimizer={}), prepare(config))
