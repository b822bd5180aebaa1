"""The algorithm: games, networks, the backward sweep and optimization, as pure functions of their inputs."""

__version__ = "0.1.0"
