"""The score of the DQN of Stable-Baselines3 after the same time: `python -m benchmarks.peer --minutes 60`.

It uses the hyper-parameters of its zoo for Atari (rl-baselines3-zoo, hyperparams/dqn.yml) and its own preprocessing;
the game has sticky actions, as in this project. Scores are of complete games, without clipping; the evaluation uses
this project's epsilon. The minutes are those of the training alone. Writes a row into docs/scores.md and draws a curve.
`pip install --group peer` installs Stable-Baselines3.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import ale_py
import gymnasium
import numpy as np
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack

from benchmarks.learning import NAME, publish
from benchmarks.report import machine, read_results, write_results
from dqn.evaluation.evaluation import Evaluation, Protocol

ZOO: dict[str, Any] = {
    "buffer_size": 100_000,
    "learning_rate": 1e-4,
    "batch_size": 32,
    "learning_starts": 100_000,
    "target_update_interval": 1_000,
    "train_freq": 4,
    "gradient_steps": 1,
    "exploration_fraction": 0.1,
    "exploration_final_eps": 0.01,
}
ZOO_STATES = 10_000_000  # total_timesteps, to which exploration_fraction refers


class Curve(BaseCallback):
    """Records the mean score of the last 100 complete games every `every_states` states; stops after `minutes`."""

    def __init__(self, minutes: float, every_states: int = 5_000) -> None:
        super().__init__()
        self.minutes, self.every_states = minutes, every_states
        self.began = time.monotonic()
        self.columns: dict[str, list[float]] = {"states": [], "score": [], "minutes": []}

    def _on_step(self) -> bool:
        passed = (time.monotonic() - self.began) / 60
        if self.num_timesteps % self.every_states == 0 and (games := self.model.ep_info_buffer):
            score = float(np.mean([game["r"] for game in games]))
            for name, value in zip(self.columns, (self.num_timesteps, score, passed), strict=True):
                self.columns[name].append(round(value, 3))
            print(f"{passed:.1f} minutes: {self.num_timesteps:,} states, score {score:.1f}", flush=True)
        return passed < self.minutes


def main() -> None:
    """Train for the given time, evaluate, and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peer", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--game", default="ALE/Breakout-v5")
    parser.add_argument("--episodes", type=int, default=100)
    given = parser.parse_args()
    gymnasium.register_envs(ale_py)
    model = DQN("CnnPolicy", open_games(given.game, 1, seed=0), seed=0, **ZOO)
    curve = Curve(given.minutes)
    model.learn(ZOO_STATES, callback=curve)
    evaluation = evaluate(model, Protocol(given.game, given.episodes, 0.01))
    results = read_results(NAME)
    results["stable-baselines3"] = {
        "study": "Stable-Baselines3",
        "seed": 0,
        "machine": machine(),
        "command": f"python -m benchmarks.peer --minutes {given.minutes:g} --game {given.game}",
        "minutes": curve.columns["minutes"][-1],
        "states": model.num_timesteps,
        "game": given.game,
        "curves": curve.columns,
        "evaluations": [evaluation.as_dict()],
    }
    write_results(NAME, results)
    publish(results)


def evaluate(model: DQN, protocol: Protocol) -> Evaluation:
    """Play complete episodes with the model's own preprocessing."""
    model.exploration_rate = protocol.epsilon
    scores, steps = evaluate_policy(
        model,
        open_games(protocol.game, 10, seed=1),
        n_eval_episodes=protocol.episodes,
        deterministic=False,
        return_episode_rewards=True,
    )
    assert isinstance(scores, list) and isinstance(steps, list)
    return Evaluation(protocol, [float(score) for score in scores], [int(each) for each in steps], 0)


def open_games(game: str, count: int, seed: int) -> VecEnv:
    """Games with the preprocessing of the zoo, four stacked frames, and sticky actions for each frame."""
    games = make_atari_env(game, count, seed=seed, env_kwargs={"frameskip": 1, "repeat_action_probability": 0.25})
    return VecFrameStack(games, n_stack=4)


if __name__ == "__main__":
    main()
