"""Scenes of synthetic videos: moving objects in front of a background, and their frames.

All objects of a scene move in the same way, given by the motion class. Their textures, sizes, speeds and positions are
random per video. Objects that leave the frame on one side enter on the opposite side, so that every frame has motion
and no object changes its direction. The background of every video sways slightly, independently of the motion class.

Shape legend: T frames, H, W frame height and width in pixels. x points right, y points down.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmd_extract.synthetic.textures import background, object_mask, object_texture

TRANSLATIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
ROTATIONS = {"clockwise": 1, "counterclockwise": -1}
"""Sign of the angular velocity; since y points down, increasing angles are clockwise on the screen."""
ZOOMS = {"expanding": 1, "shrinking": -1}
MOTIONS = (*TRANSLATIONS, *ROTATIONS, *ZOOMS)
"""Names of the motion classes."""

# Lengths in pixels at a short side of 256 pixels; they scale with the short side.
REFERENCE_SIDE = 256
_COUNT = (2, 3)
_SIZE = (60.0, 140.0)
_SPEED = (1.7, 5.4)
_SPEED_SPREAD = (0.9, 1.1)  # between the objects of one video
_ORBIT_RADIUS = (30.0, 70.0)
_ORBIT_SPEED = (2.5, 6.0)
# In the middle of a zoom, sizes are those of the other classes, so that a still frame does not reveal the class.
_ZOOM_SIZE = (130.0, 180.0)
_ZOOM_START = (0.35, 0.45)  # smallest size of a zoom, as a fraction of the full size
_ZOOM_SPEED = (1.8, 4.0)  # mean speed of the edge over a cycle
_SWAY = 4.0


@dataclass(frozen=True, kw_only=True)
class MovingObject:
    """One object of a scene.

    Attributes:
        texture: (h, w, 3) uint8, at full size.
        mask: (h, w) bool, at full size; False where the background is visible.
        center_xy: (T, 2) float64, center in pixels, not wrapped around.
        scale: (T,) float64, size as a fraction of the full size, at most 1.
    """

    texture: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    center_xy: NDArray[np.float64]
    scale: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.texture.shape != (*self.mask.shape, 3):
            raise ValueError(f"texture: shape {self.texture.shape} does not match mask of shape {self.mask.shape}")
        if self.center_xy.shape != (len(self.scale), 2):
            raise ValueError(f"center_xy: shape {self.center_xy.shape} does not match {len(self.scale)} scales")


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Content of one video.

    Attributes:
        backdrop: (H + margin, W + margin, 3) uint8, background that each frame shows a crop of.
        view_xy: (T, 2) int64, upper left corner of the crop of each frame.
        objects: objects in drawing order; later ones occlude earlier ones.
    """

    backdrop: NDArray[np.uint8]
    view_xy: NDArray[np.int64]
    objects: tuple[MovingObject, ...]


def video_rng(seed: int, video_id: str) -> np.random.Generator:
    """Return the random generator of one video, which depends on the seed and the id only."""
    digest = hashlib.sha256(video_id.encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "little")])


def make_scene(motion: str, context: str, rng: np.random.Generator, *, width: int, height: int, frames: int) -> Scene:
    """Sample the scene of one video.

    Args:
        motion: one of ``MOTIONS``.
        context: one of ``cmd_extract.synthetic.textures.CONTEXTS``.
        rng: fresh generator from ``video_rng``.
        width, height: frame size in pixels.
        frames: number of frames T.
    """
    unit = min(width, height) / REFERENCE_SIDE
    sway = _SWAY * unit
    margin = 2 * int(np.ceil(sway)) + 2
    backdrop = background(context, rng, height + margin, width + margin)
    view_xy = np.rint(_sway_path(rng, frames, sway) + margin / 2).astype(np.int64)
    if motion in TRANSLATIONS:
        objects = _translating(motion, rng, unit, width, height, frames)
    elif motion in ROTATIONS:
        objects = _orbiting(motion, rng, unit, width, height, frames)
    else:
        objects = _zooming(motion, rng, unit, width, height, frames)
    return Scene(backdrop=backdrop, view_xy=view_xy, objects=objects)


def _sway_path(rng: np.random.Generator, frames: int, reach: float) -> NDArray[np.float64]:
    # The mean velocity is about zero for every class, so that only the objects reveal the class.
    period = rng.uniform(80, 150, 2)
    phase = rng.uniform(0, 2 * np.pi, 2)
    amplitude = rng.uniform(0.4, 1.0, 2) * reach
    path: NDArray[np.float64] = amplitude * np.sin(2 * np.pi * np.arange(frames)[:, None] / period + phase)
    return path


def _translating(
    motion: str, rng: np.random.Generator, unit: float, width: int, height: int, frames: int
) -> tuple[MovingObject, ...]:
    direction = np.array(TRANSLATIONS[motion], dtype=np.float64)
    time = np.arange(frames)[:, None]
    speed = rng.uniform(*_SPEED) * unit
    objects: list[MovingObject] = []
    for start in _spread_starts(rng, width, height):
        path = start + direction * speed * rng.uniform(*_SPEED_SPREAD) * time
        objects.append(_make_object(rng, path, np.ones(frames), rng.uniform(*_SIZE, 2) * unit))
    return tuple(objects)


def _orbiting(
    motion: str, rng: np.random.Generator, unit: float, width: int, height: int, frames: int
) -> tuple[MovingObject, ...]:
    time = np.arange(frames)
    objects: list[MovingObject] = []
    for center in _spread_starts(rng, width, height):
        radius, speed = rng.uniform(*_ORBIT_RADIUS) * unit, rng.uniform(*_ORBIT_SPEED) * unit
        angle = rng.uniform(0, 2 * np.pi) + ROTATIONS[motion] * speed / radius * time
        path = center + radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        objects.append(_make_object(rng, path, np.ones(frames), rng.uniform(*_SIZE, 2) * unit))
    return tuple(objects)


def _zooming(
    motion: str, rng: np.random.Generator, unit: float, width: int, height: int, frames: int
) -> tuple[MovingObject, ...]:
    time = np.arange(frames)
    objects: list[MovingObject] = []
    for center in _spread_starts(rng, width, height):
        size = rng.uniform(*_ZOOM_SIZE, 2) * unit
        low = rng.uniform(*_ZOOM_START)
        travel = (1 - low) * size.mean() / 2
        cycle = travel / (rng.uniform(*_ZOOM_SPEED) * unit)
        progress = (rng.random() + time / cycle) % 1
        if ZOOMS[motion] < 0:
            progress = 1 - progress
        objects.append(_make_object(rng, np.tile(center, (frames, 1)), low + (1 - low) * progress, size))
    return tuple(objects)


def _spread_starts(rng: np.random.Generator, width: int, height: int) -> NDArray[np.float64]:
    """Sample two or three points (count, 2), spread over the frame so that objects rarely occlude each other."""
    count = int(rng.integers(*_COUNT, endpoint=True))
    size = np.array([width, height], dtype=np.float64)
    # Steps of 1/count on both axes: points on a diagonal are apart in every direction of motion.
    steps = np.arange(count)[:, None] / count + rng.uniform(-0.08, 0.08, (count, 2))
    return (rng.random(2) + steps) % 1 * size


def _make_object(
    rng: np.random.Generator,
    center_xy: NDArray[np.float64],
    scale: NDArray[np.float64],
    size_xy: NDArray[np.float64],
) -> MovingObject:
    width, height = (round(side) for side in size_xy)
    texture, mask = object_texture(rng, height, width), object_mask(rng, height, width)
    rim = mask & ~_erode(mask, max(1, round(min(width, height) / 40)))
    texture[rim] = texture[rim] // 4
    return MovingObject(texture=texture, mask=mask, center_xy=center_xy, scale=scale)


def _erode(mask: NDArray[np.bool_], by: int) -> NDArray[np.bool_]:
    padded = np.pad(mask, by)
    inner = mask.copy()
    for dy, dx in ((0, by), (2 * by, by), (by, 0), (by, 2 * by)):
        inner &= padded[dy : dy + mask.shape[0], dx : dx + mask.shape[1]]
    return inner


def draw_frames(scene: Scene, *, width: int, height: int) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames of a scene, each a new (H, W, 3) uint8 array."""
    for index, (left, top) in enumerate(scene.view_xy):
        frame = scene.backdrop[top : top + height, left : left + width].copy()
        for item in scene.objects:
            _draw(frame, item, index)
        yield frame


def _draw(frame: NDArray[np.uint8], item: MovingObject, index: int) -> None:
    texture, mask = item.texture, item.mask
    full_h, full_w = mask.shape
    scale = item.scale[index]
    if scale < 1:
        rows, columns = _nearest(full_h, scale), _nearest(full_w, scale)
        texture, mask = texture[rows[:, None], columns], mask[rows[:, None], columns]
    h, w = mask.shape
    height, width = frame.shape[:2]
    x, y = item.center_xy[index]
    left, top = round(x - w / 2) % width, round(y - h / 2) % height
    for y0 in (top, top - height):
        for x0 in (left, left - width):
            ya, yb, xa, xb = max(y0, 0), min(y0 + h, height), max(x0, 0), min(x0 + w, width)
            if ya < yb and xa < xb:
                part = (slice(ya - y0, yb - y0), slice(xa - x0, xb - x0))
                np.copyto(frame[ya:yb, xa:xb], texture[part], where=mask[part][..., None])


def _nearest(length: int, scale: float) -> NDArray[np.int64]:
    """Return the indices of the nearest pixels when ``length`` pixels are scaled by ``scale``."""
    count = max(1, round(length * scale))
    return ((np.arange(count) + 0.5) * length / count).astype(np.int64)
