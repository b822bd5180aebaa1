"""Checks and measurements for a machine with a GPU: `check`, `bench` and `learn`, each run with `python -m`."""
