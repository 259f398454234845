"""Retrieval, probes, recognition and search."""
