"""From shards to batches: selection, sampling, loading."""
