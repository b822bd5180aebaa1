"""The server of children imports this before it forks the first one."""

import trainer

trainer.warm()
