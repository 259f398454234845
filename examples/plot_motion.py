"""Plot the motion of one video file: plot_motion.py VIDEO OUT.png."""

import argparse

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt
import numpy as np

import cmd_extract

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("video")
parser.add_argument("out", help="picture to write")
args = parser.parse_args()

motion = cmd_extract.read_motion(args.video).read()
pixels = motion.grid_quarter_px / 4  # displacement since the frame before, in pixels of the canonical stream
speed = np.ma.masked_array(np.hypot(pixels[:, 0], pixels[:, 1]), ~motion.valid)
mean_speed = speed.mean(axis=(1, 2))  # masked for I-frames, which have no vectors
fastest = int(mean_speed.argmax())

figure, (over_time, field) = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
over_time.plot(motion.pts_seconds, mean_speed)
over_time.set(xlabel="time (s)", ylabel="mean speed (pixels per frame)")
cell = motion.info.cell_px
rows, columns = motion.info.grid_shape
dx, dy = np.ma.masked_array(pixels[fastest], np.broadcast_to(~motion.valid[fastest], pixels[fastest].shape))
x, y = np.meshgrid(cell * (np.arange(columns) + 0.5), cell * (np.arange(rows) + 0.5))
field.quiver(x, y, dx, dy, np.hypot(dx, dy), angles="xy")
field.set(title=f"frame {fastest}", xlim=(0, motion.info.width), ylim=(motion.info.height, 0), aspect="equal")
figure.savefig(args.out)
print(f"{len(motion)} frames, {args.out} written")
