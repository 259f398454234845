"""Extraction of videos into HDF5 shards of frames, keyframes and motion grids.

``cmd_extract.shard.reader.ShardSet`` reads the output of ``cmd-extract run``, and ``cmd_extract.schema`` defines its
format. Importing this package loads neither a decoder nor NumPy.
"""
