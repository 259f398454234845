"""Readouts against plain arithmetic on the outputs of the network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cmd_eval.data.table import VideoTable
from cmd_eval.features.embed import ClipNetwork, load_clip_network
from cmd_eval.features.readout import DIRECTION_FEATURES, GRID_FEATURES, POOLED_FEATURES
from cmd_eval.features.store import FeatureError, Features, with_readout
from cmd_eval.results.schema import Provenance
from cmd_train.checkpoints.files import load_checkpoint, save_checkpoint
from cmd_train.config import TrainConfig, build_config
from cmd_train.models.build import build_model

SMALL = {"model.width": 8, "model.crop_size": 32, "model.encoder_width": 4, "model.embedding_dim": 16}


def network(tmp_path: Path, features: str, **changes: object) -> tuple[ClipNetwork, torch.nn.Module, TrainConfig]:
    config = build_config("demo", SMALL | changes)
    model = build_model(config.model, seed=5).eval()
    stored = {"settings": config.as_dict(), "data_hash": "abc"}
    save_checkpoint(tmp_path, step=1, weights=model.state_dict(), state={"step": 1}, config=stored)
    return load_clip_network(load_checkpoint(tmp_path), config, features).eval(), model, config


@torch.inference_mode()
def test_clip_features_are_those_of_the_network(tmp_path: Path) -> None:
    clip = torch.randn(3, 3, 8, 32, 32, generator=torch.Generator().manual_seed(1))
    net, model, _ = network(tmp_path / "a", POOLED_FEATURES)
    assert torch.equal(net(clip), model.backbone(clip).feature_BCTHW.mean((2, 3, 4)))
    large = {"model.crop_size": 64, "sampling.clip_frames": 16}
    net, model, _ = network(tmp_path / "b", GRID_FEATURES, **large)
    clip = torch.randn(2, 3, 16, 64, 64, generator=torch.Generator().manual_seed(1))
    tokens = model.backbone(clip).tokens_BCTHW
    assert tokens.shape[2:] == (2, 4, 4)
    corners = [(t, a, b) for t in (0, 1) for a in (0, 2) for b in (0, 2)]
    quarters = [tokens[:, :, t, a : a + 2, b : b + 2].mean((2, 3)) for t, a, b in corners]
    torch.testing.assert_close(net(clip), torch.stack(quarters, 2).flatten(1))
    assert net(clip).shape == (2, net.width)
    net, model, config = network(tmp_path / "c", DIRECTION_FEATURES, **large)
    found = net(clip).view(2, 9, config.model.window_parts)
    scores = model.motion(model.backbone(clip).tokens_BCTHW)
    assert found.shape[2] == 4
    for part in range(4):
        expected = scores[:, :, part].softmax(1).flatten(2).mean(2)
        torch.testing.assert_close(found[:, :, part], expected)
    torch.testing.assert_close(found.sum(1), torch.ones(2, 4))


def test_directions_need_a_network_that_predicts_them(tmp_path: Path) -> None:
    changes = {"loss.motion_target": "features", "sampling.motion_window": "future"}
    with pytest.raises(ValueError, match="needs a network that was trained to predict directions"):
        network(tmp_path, DIRECTION_FEATURES, **changes)


def features_of(clips_VNF: np.ndarray, kind: str, readout: str) -> Features:
    videos = VideoTable(
        ids=("a", "b"),
        labels=("x", "y"),
        groups=("", ""),
        fingerprints=("1", "2"),
        splits={},
        frame_counts=(9, 9),
    )
    source = Provenance(
        command="c", shards="s", data_hash="h", features=kind, clips=clips_VNF.shape[1], readout=readout
    )
    return Features(videos=videos, mean_VF=clips_VNF.mean(1), clips_VNF=clips_VNF, provenance=source)


def test_ordered_readouts_keep_clips_side_by_side() -> None:
    clips = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    features = features_of(clips, POOLED_FEATURES, "mean")
    np.testing.assert_array_equal(features.table_VF, clips.mean(1))
    ordered = with_readout(features, "ordered")
    assert ordered.table_VF.tolist() == [clips[0].ravel().tolist(), clips[1].ravel().tolist()]
    assert ordered.rows(np.array([1])).read().tolist() == [clips[1].ravel().tolist()]
    assert with_readout(features, None) is features
    with pytest.raises(FeatureError, match=r"allow the readouts mean, ordered, not 'grid'; embed .* --readout grid"):
        with_readout(features, "grid")
    with pytest.raises(FeatureError, match="needs the features of single clips"):
        _ = replace(ordered, clips_VNF=None).table_VF
