"""Tests of feature statistics, missing windows and static positions."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from cmd_train.losses.config import LossConfig
from cmd_train.losses.contrast import alignment, uniformity
from cmd_train.losses.feature_spread import MAX_EMBEDDINGS, describe_features
from cmd_train.losses.outputs import ModelOutput
from cmd_train.losses.pretrain import motion_loss
from cmd_train.losses.static_positions import mean_speed_px, moving_positions, static_share
from cmd_train.models.heads import replace_missing_windows
from cmd_train.models.pretrain import PretrainModel
from tests.unit.cmd_train.losses.test_losses import output_of, reference_match, unit
from tests.unit.cmd_train.models.test_networks import SMALL, random_inputs

# Alignment and uniformity


def test_alignment_and_uniformity_ignore_invalid_embeddings() -> None:
    one, two = unit(7, 4, seed=1), unit(7, 4, seed=2)
    valid = torch.tensor([1, 0, 1, 1, 0, 1, 1]).bool()
    assert alignment(one, two, valid).item() == pytest.approx(alignment(one[valid], two[valid]).item(), rel=1e-5)
    assert uniformity(one, valid).item() == pytest.approx(uniformity(one[valid]).item(), rel=1e-5)
    none = torch.zeros(7).bool()
    assert (alignment(one, two, none).item(), uniformity(one, none).item()) == (0, 0)


def test_features_of_both_heads_are_described() -> None:
    output, valid = output_of(), torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [0, 1, 1, 1]]).bool()
    metrics = {name: value.item() for name, value in describe_features(output, valid).items()}
    query, key = output.motion_query_BPD[:2].flatten(0, 1), output.motion_key_BWPD[:2, 0].flatten(0, 1)
    expected = {
        "context_alignment": alignment(output.context_query_BD, output.context_key_BD),
        "context_query_uniformity": uniformity(output.context_query_BD),
        "context_key_uniformity": uniformity(output.context_key_BD),
        "motion_alignment": alignment(query, key),
        "motion_query_uniformity": uniformity(query),
        "motion_key_uniformity": uniformity(key),
    }
    assert metrics == pytest.approx({name: value.item() for name, value in expected.items()}, rel=1e-5)
    assert describe_features(ModelOutput(feature_BF=torch.zeros(1, 1)), None) == {}


def test_uniformity_of_many_embeddings_uses_a_subset() -> None:
    many = unit(8, 49, 4, seed=3)
    output = ModelOutput(feature_BF=torch.zeros(8, 1), motion_query_BPD=many, motion_key_BWPD=many[:, None])
    metrics = describe_features(output, torch.ones(8, 1).bool())
    assert MAX_EMBEDDINGS < 8 * 49
    assert metrics["motion_alignment"].item() == 0
    assert metrics["motion_query_uniformity"].item() == pytest.approx(uniformity(many.flatten(0, 1)).item(), abs=0.1)


# Missing windows


def test_missing_windows_are_replaced_by_existing_ones_round_robin() -> None:
    motion = torch.arange(7.0).view(7, 1, 1, 1, 1)
    valid = torch.tensor([0, 1, 0, 1, 0, 0, 1]).bool()
    assert replace_missing_windows(motion, valid).flatten().tolist() == [1, 1, 3, 3, 6, 1, 6]
    assert torch.equal(replace_missing_windows(motion, torch.ones(7).bool()), motion)
    assert torch.equal(replace_missing_windows(motion, torch.zeros(7).bool()), motion)


def test_missing_windows_do_not_affect_batchnorm_statistics() -> None:
    torch.manual_seed(0)
    model, (_, _, motion) = PretrainModel(SMALL), random_inputs(SMALL, samples=2, windows=2)
    motion = torch.cat([motion, torch.zeros_like(motion)], 1)
    valid = torch.tensor([[1, 1, 0, 0]] * 2).bool()
    expected = PretrainModel(SMALL)
    expected.load_state_dict(model.state_dict())
    keys = model.motion.forward_key(motion, valid)
    torch.testing.assert_close(keys[:, :2], expected.motion.forward_key(motion[:, :2]), rtol=1e-4, atol=1e-5)
    for (name, own), other in zip(model.named_buffers(), expected.buffers(), strict=True):
        # The unbiased variance divides by count - 1, and the count is doubled here.
        torch.testing.assert_close(own, other, rtol=5e-3, atol=1e-5, msg=name)
    mixed = expected.motion.forward_key(motion)
    assert not torch.allclose(mixed[:, :2], keys[:, :2], atol=1e-2), (
        "missing windows change the result without the flags"
    )


def test_missing_windows_do_not_trigger_recompilation() -> None:
    model, given = PretrainModel(SMALL), random_inputs(SMALL)
    graphs = []

    def record(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    compiled = torch.compile(model, backend=record, fullgraph=True)
    for valid in ([[1, 1, 1], [1, 1, 1]], [[1, 0, 0], [1, 1, 0]], [[0, 0, 0], [0, 0, 0]]):
        compiled(*given, torch.tensor(valid).bool())
    assert len(graphs) == 1


# Static positions


def test_speed_is_the_mean_over_valid_cells() -> None:
    motion = torch.zeros(1, 3, 2, 4, 4)
    motion[0, :2, :, 0, 0] = torch.tensor([0.3, 0.4])[:, None]  # 5 px
    motion[0, 2, :, 0, :2] = 1  # two valid cells at position 0, one of them static
    motion[0, 2, 0, 3, 3] = 1
    motion[0, 0, 0, 3, 3] = -0.2
    speed = mean_speed_px(motion, (2, 2), clamp_px=10.0)
    torch.testing.assert_close(speed, torch.tensor([[2.5, 0, 0, 2.0]]))
    torch.testing.assert_close(mean_speed_px(motion[:, :2], (2, 2), clamp_px=10.0)[0, 0], torch.tensor(1.25))
    # One valid cell of 200 at a position.
    rare = torch.zeros(1, 3, 50, 4, 4)
    rare[0, :, 7, 1, 1] = torch.tensor([0.6, -0.8, 1.0])
    torch.testing.assert_close(mean_speed_px(rare, (2, 2), clamp_px=10.0), torch.tensor([[10.0, 0, 0, 0]]))


def test_positions_below_the_least_speed_are_static() -> None:
    motion = torch.zeros(2, 2, 3, 1, 4, 4)
    motion[0, 0, 0, :, :2, :2] = 0.2  # 2 px in the predicted window
    motion[:, 1, 0] = 1.0  # other windows do not count
    assert moving_positions(motion, (2, 2), min_px=0, clamp_px=10.0) is None
    moving = moving_positions(motion[:, :, :2], (2, 2), min_px=2.0, clamp_px=10.0)
    assert moving.tolist() == [[True, False, False, False], [False] * 4]
    assert static_share(moving, torch.tensor([[1, 1], [1, 0]]).bool()).item() == 7 / 8
    assert static_share(moving, torch.tensor([[1, 1], [0, 1]]).bool()).item() == 3 / 4
    assert static_share(moving, torch.zeros(2, 2).bool()).item() == 0


def test_motion_loss_uses_only_valid_queries() -> None:
    output, valid = output_of(), torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [0, 1, 1, 1]]).bool()
    query_valid = torch.tensor([[1, 0, 0, 1, 1], [0, 0, 0, 0, 1], [1, 1, 1, 1, 1]]).bool()
    place, keys = {}, []
    for sample, window, position in np.ndindex(3, 4, 5):
        if valid[sample, window]:
            place[sample, window, position] = len(keys)
            keys.append(output.motion_key_BWPD[sample, window, position].tolist())
    chosen = [(s, p) for s, p in np.ndindex(2, 5) if query_valid[s, p]]
    queries = output.motion_query_BPD[:2].flatten(0, 1).tolist()
    expected = [reference_match(queries[5 * s + p], keys, place[s, 0, p], 0.1)[0] for s, p in chosen]
    matched = motion_loss(output, valid, LossConfig(), query_valid_BP=query_valid)
    assert matched.loss.item() == pytest.approx(np.mean(expected), rel=1e-5)
    assert (matched.queries.item(), matched.candidates.item()) == (4, 45)
    none = motion_loss(output, valid, LossConfig(), query_valid_BP=torch.zeros_like(query_valid))
    assert math.isclose(none.loss.item(), 0)


def test_temporal_negatives_are_additional_candidates() -> None:
    output = output_of()
    alone = replace(output, motion_key_BWPD=output.motion_key_BWPD[:, :1])
    with_negatives = motion_loss(output, torch.ones(3, 4).bool(), LossConfig())
    without = motion_loss(alone, torch.ones(3, 1).bool(), LossConfig())
    assert (with_negatives.candidates.item(), without.candidates.item()) == (60, 15)
    assert with_negatives.loss > without.loss
