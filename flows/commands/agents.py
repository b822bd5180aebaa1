"""Trained agents by name: the network of a checkpoint, or of a registered model, ready to play.

MLflow is imported only for runs and registered models, because the import takes longer than to load a directory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from torch import Tensor

from dqn.checkpoint import Checkpoint, CheckpointMetadata, restore_learner
from dqn.envs.backends import open_env
from dqn.envs.games import GameSettings, action_names
from dqn.evaluation.evaluation import Protocol
from dqn.evaluation.player import Player
from dqn.export.inference_spec import ExportedAgent
from dqn.hardware import playable, prepare
from dqn.learning.learner import Learner
from storage.formats.agent_export import CONFIG, read_export
from storage.urls import REGISTERED_MODEL

if TYPE_CHECKING:
    from storage.runs import StoredRun


@dataclass(frozen=True)
class Agent:
    """A trained network on this machine, with the checkpoint and the run that it comes from."""

    name: str
    metadata: CheckpointMetadata
    learner: Learner
    weights: dict[str, Tensor]  # as stored; `learner` may hold them in another precision
    run: StoredRun | None  # None for a directory, whose run may be on another machine, or if the run is not stored here
    checkpoint_digest: str
    exported: ExportedAgent | None = None  # what a directory or a registered model contains

    @classmethod
    def load(cls, directory: str | Path) -> Agent:
        """The agent in a directory that `dqn export` wrote.

        Raises:
            ValueError: there is no such directory.
            StorageError: the directory is corrupt.
        """
        if not is_directory(str(directory)):
            raise ValueError(f"{directory} is no directory that `dqn export` wrote: it has no {CONFIG}")
        return _exported_agent(str(directory), read_export(Path(directory)), None)

    def act(self, observation: np.ndarray) -> int:
        """The action for the next observation of an episode, in `make_env()` or an environment of `gymnasium.make`.

        The agent remembers the screens of the episode, so it must get every observation, in order. Call `new_episode`
        after each episode. The actions are those that `dqn play` and an evaluation of one episode choose for the same
        screens. An agent with `frame_pooling` takes the maximum of the last two screens, as `make_env()` yields it.

        Args:
            observation: (height, width, 3) uint8 in color, or (height, width) uint8 in gray.

        Raises:
            ValueError: it is no screen of a game.
        """
        return self._player.act(observation)

    def make_env(self) -> gymnasium.Env[Any, Any]:
        """A new environment of the agent's game, with gray screens as observations."""
        return open_env(GameSettings.of(self.metadata.config))

    def new_episode(self, seed: int | None = None, epsilon: float | None = None) -> None:
        """Begin another episode.

        Args:
            seed: of the random actions; by default 0 for the first episode, and one more for each one after it.
            epsilon: probability of a random action, from now on; by default the run's `evaluation_epsilon`.

        Raises:
            ValueError: an argument is out of range.
        """
        self._player.next_episode(seed, epsilon)

    @cached_property
    def _player(self) -> Player:
        return Player(self.learner.estimate, self.metadata.config, self.protocol(1))

    def protocol(
        self, episodes: int | None = None, epsilon: float | None = None, game: str | None = None, seed: int = 0
    ) -> Protocol:
        """The evaluation protocol of the run, with the given values in place of its own.

        Raises:
            ValueError: a value is out of range, or `game` has other actions than the run's game.
        """
        own = Protocol.of(self.metadata.config)
        if game and game != own.game:
            GameSettings.of(self.metadata.config, game)  # raises a ValueError
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
    if checkpoint != "latest" and (is_directory(name) or name.startswith(REGISTERED_MODEL)):
        raise ValueError(f"checkpoint is {checkpoint!r}, but {name} has only one; leave it out")
    if is_directory(name):
        return Agent.load(name)
    from storage.model_registry import open_shared
    from storage.runs import open_run, open_tracking
    from storage.selection import find_checkpoint

    tracking = open_tracking()
    if name.startswith(REGISTERED_MODEL):
        found = open_shared(tracking, name)
        run = open_run(found.run_id) if tracking.has_run(found.run_id) else None
        return _exported_agent(name, found, run)
    run = open_run(tracking.find_run(name).info.run_id)
    unit = find_checkpoint(run, checkpoint)
    loaded = run.checkpoint(unit)
    return Agent(run.name, loaded.metadata, load_learner(loaded), loaded.weights, run, unit.digest)


def _exported_agent(name: str, found: ExportedAgent, run: StoredRun | None) -> Agent:
    learner = load_learner(Checkpoint(found.metadata, [], found.weights, {}))
    return Agent(name, found.metadata, learner, found.weights, run, found.checkpoint, found)


def is_directory(name: str) -> bool:
    """Whether `name` is a directory that `dqn export` wrote, and not a run."""
    return Path(name, CONFIG).is_file()


def find_run_and_cycle(name: str) -> tuple[StoredRun, int | None] | None:
    """Find the run called `name`; for a registered model, the run and the cycle that it was registered from.

    Returns:
        None for a directory, and for a registered model whose run is not stored here.

    Raises:
        ValueError: there is no such run or model.
        StorageError: the model is corrupt.
    """
    if is_directory(name):
        return None
    from storage.model_registry import open_shared
    from storage.runs import open_run, open_tracking

    tracking = open_tracking()
    if name.startswith(REGISTERED_MODEL):
        shared = open_shared(tracking, name)
        is_stored = tracking.has_run(shared.run_id)
        return (open_run(shared.run_id), shared.metadata.counters.cycle) if is_stored else None
    return open_run(tracking.find_run(name).info.run_id), None


def load_learner(checkpoint: Checkpoint) -> Learner:
    """Load a checkpoint's network for inference on this machine; the state of the optimizer is left out."""
    config = playable(checkpoint.config)
    metadata = replace(checkpoint.metadata, config=config)
    return restore_learner(replace(checkpoint, metadata=metadata, optimizer={}), prepare(config))
