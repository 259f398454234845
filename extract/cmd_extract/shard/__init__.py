"""HDF5 shards: writing, reading, verification, summary and preview."""
