"""Decoding of one video: probing, transcoding, motion vectors, keyframes and frames."""
