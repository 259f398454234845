"""Manifests: lists of videos with labels, groups and splits."""
