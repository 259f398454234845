from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from cmd_eval.features.handcrafted import color_histogram_features, describe_colors
from cmd_extract.shard.reader import ShardSet


def test_color_histogram_matches_a_loop_over_pixels() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3)).astype(np.uint8)
    mean = [0.0] * 512
    for frame in frames:
        for row in frame:
            for red, green, blue in row.tolist():
                mean[red // 32 * 64 + green // 32 * 8 + blue // 32] += 1 / (4 * 5) / 3
    np.testing.assert_allclose(describe_colors(frames), [math.sqrt(share) for share in mean], atol=1e-12)


def test_color_histogram_ignores_position_and_time() -> None:
    frames = np.random.default_rng(1).integers(0, 256, (4, 6, 6, 3)).astype(np.uint8)
    shuffled = np.random.default_rng(2).permutation(frames.reshape(-1, 3)).reshape(frames.shape)
    np.testing.assert_array_equal(describe_colors(shuffled), describe_colors(frames))
    swapped = describe_colors(frames[..., ::-1])
    assert describe_colors(frames) @ swapped < 0.9
    assert swapped @ swapped == pytest.approx(1.0)
    black, white = (np.full((1, 2, 2, 3), value, np.uint8) for value in (0, 255))
    assert (describe_colors(black).argmax(), describe_colors(white).argmax()) == (0, 511)


def test_color_histogram_uses_frames_of_the_whole_video(few_shards: Path) -> None:
    shards, done = ShardSet(few_shards), []
    features = color_histogram_features(shards, "test", lambda n, all_: done.append((n, all_)))
    assert done[-1] == (24, 24)
    assert features.provenance.features == "color histogram"
    entry = shards.videos[5]
    numbers = [n * (entry.frame_count - 1) // 15 for n in range(16)]
    frames = [simplejpeg.decode_jpeg(jpeg, "RGB") for jpeg in shards.frame_jpegs(entry, numbers)]
    np.testing.assert_allclose(features.mean_VF[5], describe_colors(np.stack(frames)), rtol=1e-6)
