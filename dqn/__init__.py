"""The algorithm: games, networks, the backward sweep and optimization, as pure functions of their inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flows.commands.agents import Agent

__version__ = "0.2.0"
__all__ = ["Agent", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the class that `from dqn import Agent` asks for, because `import dqn` must not import torch.

    `dqn` is also the name of the distribution, so its public class is here, although it is defined above this package.
    """
    if name == "Agent":
        from flows.commands.agents import Agent

        return Agent
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
