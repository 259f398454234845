"""Labelled synthetic videos."""
