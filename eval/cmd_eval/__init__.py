"""Evaluation: embeddings, retrieval, probes and reports."""
