"""Manifests: CSV files that list videos with labels, groups and splits."""
