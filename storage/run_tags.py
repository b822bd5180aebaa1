"""Names of the tags of runs in MLflow."""

MARK = "dqn.run"  # "train" or "sweep", by which they are found among other runs of the store
PRESET = "dqn.preset"
TARGET = "dqn.target"
WRITER = "dqn.writer"  # the number of the run's writer, a colon, and the writer
FLOW_RUN = "prefect.flow_run_id"
TRIAL, SEED = "dqn.trial", "dqn.seed"  # of a training of a sweep
