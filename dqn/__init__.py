"""The algorithm: games, networks, the backward sweep and optimization, as pure functions of their inputs."""

__version__ = "0.2.0"
