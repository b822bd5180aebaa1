"""One file per Prefect task: load committed inputs, one pure call, commit one output."""
