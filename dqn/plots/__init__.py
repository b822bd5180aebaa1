"""Figures and videos; everything that needs matplotlib or a font."""
