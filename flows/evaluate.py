"""Evaluate a run: complete episodes with its newest checkpoint."""

from __future__ import annotations

from dqn.environments import Lanes, action_names, check_game
from dqn.episodes import first_histories
from dqn.evaluation import Evaluation, evaluate
from dqn.hardware import prepare
from storage.runs import StoredRun
from tasks.live import take_learner
from tasks.progress import report

MOST_LANES = 64


def evaluate_run(
    run: StoredRun, episodes: int = 30, epsilon: float | None = None, game: str | None = None, seed: int = 0
) -> Evaluation:
    """Play `episodes` complete episodes with the newest checkpoint of `run`.

    Args:
        epsilon: probability of a random action; the run's testing_epsilon unless told otherwise.
        game: another game with the same actions; the run's own unless told otherwise.
        seed: of the games and the policy.

    Raises:
        ValueError: an argument is out of range, or the game has other actions.
        StorageError: the run has no checkpoint that is whole.
    """
    if episodes < 1:
        raise ValueError(f"episodes is {episodes}; it must be at least 1")
    if epsilon is not None and not 0 <= epsilon <= 1:
        raise ValueError(f"epsilon is {epsilon}; a probability is from 0 to 1")
    unit = run.newest_checkpoint()
    facts = run.facts(unit)
    config = facts.config
    game = game or config.game
    check_game(game)
    if tuple(action_names(game)) != facts.action_names:
        raise ValueError(
            f"{game} has the actions {', '.join(action_names(game))}; "
            f"the run {run.name} was trained with {', '.join(facts.action_names)}"
        )
    prepare(config)
    _, learner = take_learner(run, unit)
    lanes = Lanes(
        game,
        first_histories(min(episodes, MOST_LANES)),
        seed,
        frames_limit=config.episode_frames_limit,
        threads=config.threads,
    )
    try:
        return evaluate(
            lanes,
            learner.estimate,
            episodes,
            config.testing_epsilon if epsilon is None else epsilon,
            seed,
            lambda done, total: report("evaluate", facts.counters.cycle, done, total),
        )
    finally:
        lanes.close()
