"""Committed units, and the stores that hold them."""
