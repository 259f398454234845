"""Shared parts of the three command lines: command group, progress display, text tables."""
