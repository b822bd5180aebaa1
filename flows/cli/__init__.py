"""The command line `dqn`."""

from flows.cli.app import main

__all__ = ["main"]
