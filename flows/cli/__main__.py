"""`python -m flows.cli` is the command `dqn`."""

from flows.cli.app import main

main()
