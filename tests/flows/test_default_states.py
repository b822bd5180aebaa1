"""Texts that must contain the default number of states as a literal, because they are not computed."""

from __future__ import annotations

import typer.main

from dqn.config import DEFAULT_STATES, TrainConfig
from flows.cli.app import app
from flows.train import train


def test_flow_docstring_has_the_default_states() -> None:
    """Prefect shows the docstring's description of each parameter in its form."""
    assert train.parameters is not None
    assert str(DEFAULT_STATES) in train.parameters.properties["states"]["description"]


def test_command_help_has_the_default_states() -> None:
    """The command line does not import the configuration for its help, which would double its start."""
    command = typer.main.get_command(app).commands["train"]
    (states,) = (option for option in command.params if option.name == "states")
    assert str(DEFAULT_STATES) == states.show_default


def test_default_learning_rate_ends_at_the_default_states() -> None:
    assert TrainConfig().learning_rate.states == DEFAULT_STATES
