"""Experiments that need several runs: ablations, auxiliary loss, evidence."""
