"""Data loading: selection of videos, sampling, datasets and batches."""
