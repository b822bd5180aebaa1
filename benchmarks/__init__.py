"""Benchmarks of speed, learning and scaling; each compares measurements of the same run where it can."""
