"""Synthetic videos with known motion, for demos and tests."""
