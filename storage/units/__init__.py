"""Committed units: what one is, and the stores that keep them."""
