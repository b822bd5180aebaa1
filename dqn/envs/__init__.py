"""dqn.envs."""
