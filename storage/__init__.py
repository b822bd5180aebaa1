"""What must survive: committed units, checkpoints, runs and their metrics."""
