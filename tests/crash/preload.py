"""The fork server imports this module before it forks the first child."""

import trainer

trainer.preload()
