"""What happens in which order, and the command line."""

from storage.environment import set_defaults

set_defaults()
