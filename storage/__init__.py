"""Storage that survives crashes: committed units, checkpoints, runs and their metrics."""

from storage.environment import set_defaults

set_defaults()
