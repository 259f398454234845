"""Checkpoint files, retention, and initial weights."""
