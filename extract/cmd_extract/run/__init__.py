"""A whole extraction on one machine: planning, workers, bookkeeping."""
