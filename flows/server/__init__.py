"""`dqn serve`, `dqn ui` and the server of one training: processes, ports and their environment."""
