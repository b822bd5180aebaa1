"""The command `dqn`."""

from flows.cli.app import main

__all__ = ["main"]
