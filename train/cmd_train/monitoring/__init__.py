"""Metrics, retrieval and pictures of a run."""
