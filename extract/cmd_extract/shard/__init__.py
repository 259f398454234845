"""The HDF5 shard format: reading, writing, verification, previews."""
