"""The Prefect flows, the commands of `dqn`, and the servers."""

from storage.environment import set_defaults

set_defaults()
