"""The commands of `dqn`, one module each. The flows `evaluate` and `inspect` run two of them."""
