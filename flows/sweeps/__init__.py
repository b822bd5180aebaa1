"""Sweeps: many trainings that search for the best configuration, as one batch."""
