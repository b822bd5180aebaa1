"""The command `dqn train` with fake play, to measure whether a cycle takes longer after many cycles.

`python -m benchmarks.growth CYCLES` trains in the home DQN_HOME. Everything but play is real: training on a few
states, storage, logging and orchestration.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from dqn.envs.experience import Experience
from storage.environment import quiet_prefect

LANES, STEPS = 4, 16
SETTINGS = {"network": "small", "lanes": LANES, "replay_states": LANES * STEPS, "batch_size": LANES * STEPS}
SETTINGS |= {"max_epochs": 1, "threads": 1, "lane_groups": 1}


class FakeLanes:
    """Stands in for the lanes of real games."""

    episodes = np.zeros(LANES, np.int64)

    def close(self) -> None:
        """Do nothing; there are no games to close."""


def fake_collect(checkpoint: Any, *others: Any) -> Experience:
    """Random experience in which no episode ends before the last step."""
    states = checkpoint.metadata.counters.states
    experience = Experience.empty(STEPS, LANES, 4)
    draws = np.random.default_rng(states)
    experience.states[:] = draws.integers(0, 2, experience.states.shape, np.uint8)
    experience.q_values[:] = draws.random(experience.q_values.shape)
    experience.bootstrap_q_values[:] = 0
    experience.actions[:] = draws.integers(4, size=experience.actions.shape)
    for table in (experience.rewards, experience.life_lost, experience.terminated, experience.truncated):
        table[:] = 0
    experience.terminated[-1] = True  # because the end of an episode keeps the histories of the lanes short
    experience.episode[:] = np.arange(LANES) + states // STEPS
    return experience


def main() -> None:
    """Train for the number of cycles that the argument gives."""
    quiet_prefect()
    from flows import cli
    from tasks import collect_episodes, process_cache

    collect_episodes.collect = fake_collect
    process_cache.open_lanes = lambda config, histories, shard: [FakeLanes()]
    fields = [option for name, value in SETTINGS.items() for option in ("--set", f"{name}={value}")]
    sys.argv = ["dqn", "train", "--cycles", sys.argv[1], *fields]
    cli.main()


if __name__ == "__main__":
    main()
