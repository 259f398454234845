"""Operating system services: atomic files, process limits, heartbeats and signals."""
