"""Evaluation of a fixed network on complete episodes."""
