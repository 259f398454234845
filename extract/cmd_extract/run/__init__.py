"""Extraction on one machine: planning, worker processes, containment, index and run record."""
