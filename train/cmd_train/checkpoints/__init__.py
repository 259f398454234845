"""Checkpoint files, their retention, initial weights."""
