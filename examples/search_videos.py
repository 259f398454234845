"""Find the videos of a folder that are most similar to a query: search_videos.py WEIGHTS FOLDER QUERY."""

import argparse
from pathlib import Path

import numpy as np

import cmd_eval

SUFFIXES = {".avi", ".mkv", ".mov", ".mp4", ".mpg", ".webm"}

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("weights", help="run folder, checkpoint, folder of cmd-train export, or published weights")
parser.add_argument("folder", type=Path, help="folder of videos, searched with all its subfolders")
parser.add_argument("query", type=Path, help="a video")
parser.add_argument("--count", type=int, default=5, help="number of videos to show")
parser.add_argument("--clips", type=int, default=10, help="clips per video; fewer are faster and coarser")
args = parser.parse_args()

model = cmd_eval.load_model(args.weights)
videos = sorted(path for path in args.folder.rglob("*") if path.suffix.lower() in SUFFIXES)
# Broken videos are reported and have a feature of NaN.
features = model.embed([args.query, *videos], clips=args.clips, progress=True, on_error=print)
features /= np.linalg.norm(features, axis=1, keepdims=True)
similarity = features[1:] @ features[0]
for index in np.argsort(-similarity)[: args.count]:  # NaN comes last
    print(f"{similarity[index]:.3f}  {videos[index]}")
