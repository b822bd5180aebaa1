"""One file per Prefect task: load committed inputs, one pure call, commit one output."""

from storage.environment import set_defaults

set_defaults()
