"""Golden tests of the two core protocols, from the bytes of the shards to the result.

Reading, decoding (Pillow), sampling, cropping, resizing, normalization and averaging are written again here, as the
protocol describes them, without the project's code for them. Only the network itself is the project's.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cmd_eval.cli.main import main
from cmd_extract.shard.reader import ShardSet
from cmd_train.checkpoints.files import Checkpoint, load_checkpoint, save_checkpoint
from cmd_train.config import config_from_dict
from cmd_train.models.build import build_classifier, build_model
from tests.command_line import call
from tests.integration.cmd_eval.checkpoint_runs import make_run

CLIPS = 10
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
# Pillow rounds resized pixels to 8 bits, the project does not.
TOLERANCE = 2e-3


def frames_of_all_videos(shards: Path) -> dict[str, list[bytes]]:
    """JPEG bytes of all frames of each video, by its id."""
    found = {}
    for path in sorted(shards.glob("shard-*.h5")):
        with h5py.File(path) as file:
            offset, data = file["frame/offset"][:], file["frame/jpeg"][:]
            for n, name in enumerate(file["video/id"][:]):
                first, count = int(file["video/first_frame"][n]), int(file["video/frame_count"][n])
                pieces = [data[offset[f] : offset[f + 1]].tobytes() for f in range(first, first + count)]
                found[name.decode()] = pieces
    return found


def picture(jpeg: bytes, size: int, *, mirror: bool = False) -> np.ndarray:
    """The central square with 112/128 of the short side, resized and normalized, (3, S, S)."""
    image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    side = min(image.size) * 112 / 128
    left, top = (image.width - side) / 2, (image.height - side) / 2
    image = image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    if mirror:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return ((np.asarray(image) / 255 - MEAN) / STD).transpose(2, 0, 1)


def clips_of(jpegs: list[bytes], settings: dict[str, Any], *, mirror: bool = False) -> list[Tensor]:
    """Ten evenly spaced clips, from the first frame to the last one, each (1, 3, T, S, S)."""
    length, stride, size = (
        settings["sampling"]["clip_frames"],
        settings["sampling"]["stride"],
        settings["model"]["crop_size"],
    )
    room = len(jpegs) - ((length - 1) * stride + 1)
    assert room > 0, "no video is too short for this test"
    clips = []
    for number in range(CLIPS):
        first = number * room // (CLIPS - 1)
        pictures = [picture(jpegs[first + n * stride], size, mirror=mirror) for n in range(length)]
        clips.append(torch.from_numpy(np.stack(pictures, axis=1)[None]).float())
    return clips


@torch.no_grad()
def test_retrieval_features_are_the_mean_over_ten_central_clips(few_shards: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", few_shards, sampling__stride=2)
    done = call(main, "embed", run, few_shards, tmp_path / "f.h5", "--workers", 0, "--device", "cpu")
    assert done.exit_code == 0, done.output
    checkpoint = load_checkpoint(run)
    settings = checkpoint.config["settings"]
    model = build_model(config_from_dict(settings).model, seed=1)
    model.load_state_dict(checkpoint.weights)
    backbone = model.backbone.eval()

    def feature(jpegs: list[bytes], *, mirror: bool = False) -> np.ndarray:
        total = torch.zeros(())
        for clip in clips_of(jpegs, settings, mirror=mirror):
            total = total + backbone(clip).pooled_BC[0]
        return (total / CLIPS).numpy()

    frames = frames_of_all_videos(few_shards)
    with h5py.File(tmp_path / "f.h5") as file:
        found = {name.decode(): row for name, row in zip(file["video/id"][:], file["feature/mean"][:], strict=True)}
    assert found.keys() == frames.keys()
    for name in list(frames)[::5]:
        scale = np.abs(found[name]).max()
        np.testing.assert_allclose(found[name], feature(frames[name]), rtol=0, atol=TOLERANCE * scale)
        mirrored = np.abs(feature(frames[name], mirror=True) - found[name]).max()
        assert mirrored > 5 * TOLERANCE * scale, "mirrored clips would be noticed"


@torch.no_grad()
def disagreeing_clips(checkpoint: Checkpoint, jpegs: list[bytes]) -> dict[str, Tensor]:
    """Weights of a fine-tuned network whose classifier follows what changes within a video.

    The logit of the first class rises from -2 to 6 over the clips of a video, so that the average of probabilities
    (about 0.73) differs from the probability of the average logit (0.88).
    """
    settings = checkpoint.config["settings"]
    model = build_classifier(config_from_dict(settings).model, 2, seed=1)
    model.load_state_dict(checkpoint.weights)
    clips = clips_of(jpegs, settings)
    first, last = (model.eval().backbone(clip).pooled_BC[0] for clip in (clips[0], clips[-1]))
    rise = 8 * (last - first) / (last - first).square().sum()
    changed = {"weight": torch.stack([rise, torch.zeros_like(rise)]), "bias": torch.tensor([-2 - first @ rise, 0])}
    (prefix,) = [
        name.removesuffix("weight") for name, value in checkpoint.weights.items() if value.shape == (2, len(rise))
    ]
    return {**checkpoint.weights, **{prefix + name: value for name, value in changed.items()}}


@torch.no_grad()
def test_recognition_averages_the_softmax_over_ten_central_clips(tuned: Path, few_shards: Path, tmp_path: Path) -> None:
    frames, checkpoint, run = frames_of_all_videos(few_shards), load_checkpoint(tuned), tmp_path / "run"
    tested = next(entry.video_id for entry in ShardSet(few_shards).videos if entry.splits["split"] == "test")
    weights, state = disagreeing_clips(checkpoint, frames[tested]), checkpoint.load_state()
    save_checkpoint(run, step=checkpoint.step, weights=weights, state=state, config=checkpoint.config)
    done = call(main, "recognition", run, few_shards, "--workers", 0, "--device", "cpu")
    assert done.exit_code == 0, done.output
    (split,) = json.loads((run / "eval" / "recognition-split.json").read_text())["splits"]
    checkpoint = load_checkpoint(run)
    settings, classes = checkpoint.config["settings"], checkpoint.config["classes"]
    model = build_classifier(config_from_dict(settings).model, len(classes), seed=1)
    model.load_state_dict(checkpoint.weights)
    model.eval()

    def softmax(logits: np.ndarray) -> np.ndarray:
        powers = np.exp(logits - logits.max())
        return powers / powers.sum()

    def mean_softmax(clips: list[Tensor]) -> np.ndarray:
        total = np.zeros(len(classes))
        for clip in clips:
            total += softmax(model(clip).logits_BK[0].double().numpy())
        return total / CLIPS

    def softmax_of_mean(clips: list[Tensor]) -> np.ndarray:
        return softmax(np.mean([model(clip).logits_BK[0].double().numpy() for clip in clips], axis=0))

    right, differences = 0, []
    for row in split["videos"]:
        clips = clips_of(frames[row["video"]], settings)
        probability = mean_softmax(clips)
        assert row["confidence"] == pytest.approx(probability.max(), abs=10 * TOLERANCE)
        if probability.max() > 0.5 + 10 * TOLERANCE:
            assert row["predicted"] == classes[int(probability.argmax())]
        right += row["predicted"] == row["class"]
        mirrored = clips_of(frames[row["video"]], settings, mirror=True)
        others = softmax_of_mean(clips), mean_softmax(mirrored)
        differences.append([abs(other.max() - row["confidence"]) for other in others])
    assert split["top1"]["value"] == right / len(split["videos"])
    logits, mirrored = np.max(differences, axis=0)
    assert logits > 50 * TOLERANCE, "averaged logits would be noticed"
    assert mirrored > 50 * TOLERANCE, "mirrored clips would be noticed"
