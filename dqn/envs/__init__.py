"""Atari games as vector environments: from the emulator's frames to the experience of one cycle."""
