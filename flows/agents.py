"""Trained agents by name: a run and one of its checkpoints, ready to play."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dqn.checkpoint import Checkpoint, Facts, restore_learner
from dqn.environments import action_names, check_game
from dqn.evaluation import Protocol
from dqn.hardware import playable, prepare
from dqn.optimization import Learner
from storage.runs import StoredRun, open_run, open_tracking
from storage.units import Unit


@dataclass(frozen=True)
class Agent:
    """A trained network that is ready to play on this machine."""

    name: str
    facts: Facts
    learner: Learner
    run: StoredRun
    unit: Unit

    def protocol(
        self, episodes: int | None = None, epsilon: float | None = None, game: str | None = None, seed: int = 0
    ) -> Protocol:
        """The run's own protocol but for what is given.

        Raises:
            ValueError: something is out of range, or the game has other actions.
        """
        own = Protocol.of(self.facts.config)
        if game and game != own.game:
            check_game(game)
            actions = tuple(action_names(game, self.facts.config.full_action_set))
            if actions != self.facts.action_names:
                raise ValueError(
                    f"{game} has the actions {', '.join(actions)}; "
                    f"the run {self.name} was trained with {', '.join(self.facts.action_names)}"
                )
        return Protocol(
            game or own.game,
            own.episodes if episodes is None else episodes,
            own.epsilon if epsilon is None else epsilon,
            seed,
        )


def open_agent(name: str, which: str = "latest") -> Agent:
    """The agent of the run called `name`, from the checkpoint `latest`, `best` or of a cycle.

    Raises:
        ValueError: no such run or checkpoint.
        StorageError: the checkpoint is broken.
    """
    run = open_run(open_tracking().find_run(name).info.run_id)
    unit = run.find_checkpoint(which)
    checkpoint = run.checkpoint(unit)
    return Agent(run.name, checkpoint.facts, ready_to_play(checkpoint), run, unit)


def ready_to_play(checkpoint: Checkpoint) -> Learner:
    """The network of a checkpoint on this machine, without the state of its optimizer."""
    config = playable(checkpoint.config)
    facts = replace(checkpoint.facts, config=config)
    return restore_learner(replace(checkpoint, facts=facts, optimizer={}), prepare(config))
