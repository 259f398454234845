"""Files, signals and process liveness."""
