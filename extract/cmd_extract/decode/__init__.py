"""One video: probing, transcoding, motion vectors, keyframes, frames."""
