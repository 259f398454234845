"""Metrics, pictures and k-NN monitoring of a run."""
