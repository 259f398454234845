from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from cmd_extract.shard.drawing import color_motion
from cmd_train.monitoring.batch_picture import draw_batch
from cmd_train.monitoring.live_line import LiveLine
from cmd_train.monitoring.neighbours import leave_one_out_recall
from tests.unit.cmd_train.engine.test_step import batch


def test_recall_matches_a_plain_count() -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(40, 6)).astype(np.float32)
    features[7] = features[3]  # a copy, which a row must not take for itself
    labels = [str(n) for n in random.integers(0, 5, 40)]
    labels[11], labels[20] = "", "alone"
    found = leave_one_out_recall(torch.from_numpy(features), labels, (1, 5, 100))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    kept = [row for row in range(40) if labels[row]]
    for k in (1, 5, 100):
        hits = []
        for row in kept:
            if labels.count(labels[row]) > 1:
                others = sorted((o for o in kept if o != row), key=lambda o: -float(unit[row] @ unit[o]))
                hits.append(any(labels[o] == labels[row] for o in others[:k]))
        assert found[k] == pytest.approx(np.mean(hits))
    assert found[100] == 1.0
    with pytest.raises(ValueError, match="share a label"):
        leave_one_out_recall(torch.ones(3, 2), ["a", "b", ""], (1,))
    with pytest.raises(ValueError, match="2 for 3"):
        leave_one_out_recall(torch.ones(3, 2), ["a", "b"], (1,))


def test_colours_of_motion() -> None:
    motion = np.zeros((2, 2, 1, 6), np.int16)
    valid = np.ones((2, 1, 6), np.bool_)
    for cell, (dx, dy) in enumerate([(24, 0), (-24, 0), (0, 24), (0, -24), (0, 0), (99, 99)]):
        motion[:, 0, 0, cell], motion[:, 1, 0, cell] = dx, dy
    valid[:, 0, 5] = False
    right, left, down, up, still, none = color_motion(motion, valid)[0].astype(int)
    assert right.tolist() == [255, 0, 0]
    assert left[0] < 10
    assert min(left[1:]) > 245
    assert down.argmax() == 1
    assert up.argmax() == 2
    assert still.tolist() == [0, 0, 0]
    assert none.tolist() == [96, 96, 96]
    valid[1] = False
    assert color_motion(motion, valid)[0][0].tolist() == [255, 0, 0], "the mean is over frames that have a vector"


def test_picture_shows_frames_and_keyframe_of_each_sample(tmp_path: Path) -> None:
    stored = batch()
    stored.clip_u8_BTHWC[1, 0] = torch.tensor([10, 200, 30], dtype=torch.uint8)
    draw_batch(stored, [f"video-{n}" for n in range(6)], tmp_path / "first.png")
    pixels = np.asarray(Image.open(tmp_path / "first.png"))
    assert pixels.shape[0] % 6 == 0
    height = pixels.shape[0] // 6
    assert pixels[height + 60, 50].tolist() == [10, 200, 30]
    assert [path.name for path in tmp_path.iterdir()] == ["first.png"]


def test_live_line_on_a_terminal_and_elsewhere() -> None:
    for terminal in (True, False):
        stream = io.StringIO()
        with LiveLine(Console(file=stream, force_terminal=terminal, width=160)) as live:
            assert live.shown is terminal
            live.update(3, 40, "loss 1.234, [b] data wait 5%")
            live.say("a [line] that stays")
        assert "a [line] that stays" in stream.getvalue()
        assert ("loss 1.234, [b] data wait 5%" in stream.getvalue()) is terminal
