"""Trained agents by name: a run and one of its checkpoints, ready to play."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from dqn.checkpoint import Checkpoint, CheckpointMetadata, restore_learner
from dqn.envs.games import action_names, check_game
from dqn.evaluation.evaluation import Protocol
from dqn.hardware import playable, prepare
from dqn.learning.learner import Learner
from storage.model_registry import SCHEME, open_shared
from storage.runs import StoredRun, open_run, open_tracking
from storage.selection import find_checkpoint


@dataclass(frozen=True)
class Agent:
    """A trained network that is ready to play on this machine."""

    name: str
    metadata: CheckpointMetadata
    learner: Learner
    weights: dict[str, Tensor]  # as they were stored
    run: StoredRun
    checkpoint_digest: str

    def protocol(
        self, episodes: int | None = None, epsilon: float | None = None, game: str | None = None, seed: int = 0
    ) -> Protocol:
        """The run's own protocol but for what is given.

        Raises:
            ValueError: something is out of range, or the game has other actions.
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


def open_agent(name: str, which: str = "latest") -> Agent:
    """The agent of the run called `name`, from the checkpoint `latest`, `best` or of a cycle; or a shared one.

    Args:
        name: of a run, or `models:/NAME@champion` or `models:/NAME/VERSION` in MLflow's model registry.
        which: the checkpoint; a shared agent has only one.

    Raises:
        ValueError: no such run, checkpoint or model.
        StorageError: the checkpoint or the model is broken.
    """
    tracking = open_tracking()
    if name.startswith(SCHEME):
        if which != "latest":
            raise ValueError(f"checkpoint is {which!r}, but {name} has only one; leave it out")
        shared = open_shared(tracking, name)
        checkpoint, digest = Checkpoint(shared.metadata, [], shared.weights, {}), shared.checkpoint
        run = open_run(shared.run_id)
    else:
        run = open_run(tracking.find_run(name).info.run_id)
        unit = find_checkpoint(run, which)
        checkpoint, digest = run.checkpoint(unit), unit.digest
        name = run.name
    return Agent(name, checkpoint.metadata, load_learner(checkpoint), checkpoint.weights, run, digest)


def find_run_and_cycle(name: str) -> tuple[StoredRun, int | None]:
    """The run called `name`; or, of a shared agent, the run that it is from, with its cycle.

    Raises:
        ValueError: no such run or model.
        StorageError: the model is broken.
    """
    tracking = open_tracking()
    if name.startswith(SCHEME):
        shared = open_shared(tracking, name)
        return open_run(shared.run_id), shared.metadata.counters.cycle
    return open_run(tracking.find_run(name).info.run_id), None


def load_learner(checkpoint: Checkpoint) -> Learner:
    """The network of a checkpoint on this machine, without the state of its optimizer."""
    config = playable(checkpoint.config)
    metadata = replace(checkpoint.metadata, config=config)
    return restore_learner(replace(checkpoint, metadata=metadata, optimizer={}), prepare(config))
