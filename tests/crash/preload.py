"""The fork server imports this module before it forks the first child."""

import harness  # noqa: F401 - the functions that children call are in it, and it imports pytest
import trainer

trainer.preload()
