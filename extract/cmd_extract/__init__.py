"""Offline extraction: videos in, HDF5 shards of frames, keyframes and motion grids out."""
