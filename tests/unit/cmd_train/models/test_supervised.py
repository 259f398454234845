from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cmd_train.losses.config import LossConfig
from cmd_train.losses.pretrain import motion_loss
from cmd_train.losses.supervised import supervised_loss
from cmd_train.models.pretrain import PretrainModel
from cmd_train.models.supervised import SupervisedModel
from tests.unit.cmd_train.models.test_networks import SMALL, random_inputs

WITH_MOTION = replace(SMALL, context_head=False)
PLAIN = replace(WITH_MOTION, motion_head=False)
CONFIG = LossConfig()
LABELS = torch.tensor([1, 4])
VALID = torch.ones(2, 3).bool()


def built(config=WITH_MOTION) -> SupervisedModel:
    torch.manual_seed(0)
    return SupervisedModel(config, classes=5)


def test_motion_loss_reaches_the_backbone() -> None:
    model, (clip, _, motion) = built(), random_inputs(SMALL)
    supervised_loss(model(clip, motion, VALID), LABELS, VALID, CONFIG).motion.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert gradients["backbone.trunk.stem.spatial.conv.weight"].abs().sum() > 0
    assert gradients["motion.encoder.trunk.stem.conv.weight"].abs().sum() > 0
    assert gradients["classifier.weight"] is None
    model.zero_grad()
    supervised_loss(model(clip, motion, VALID), LABELS, VALID, CONFIG).total.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_without_the_motion_head_all_other_weights_are_the_same() -> None:
    plain, full = built(PLAIN), built()
    names = dict(plain.named_parameters()).keys()
    assert not [name for name in names if name.startswith("motion")]
    assert names < dict(full.named_parameters()).keys()
    assert all(torch.equal(t, full.state_dict()[name]) for name, t in plain.state_dict().items())
    clip, _, _ = random_inputs(SMALL)
    output = plain(clip)
    loss = supervised_loss(output, LABELS, None, CONFIG)
    assert loss.motion is None
    assert loss.total is loss.classification
    loss.total.backward()
    assert [name for name, p in plain.named_parameters() if p.grad is None] == []


def test_motion_head_and_loss_match_pretraining() -> None:
    model, (clip, _, motion) = built(replace(WITH_MOTION, dropout=0.0)), random_inputs(SMALL)
    pretraining = PretrainModel(model.config)
    assert set(pretraining.state_dict()) == {n for n in model.state_dict() if not n.startswith("classifier")}
    pretraining.load_state_dict({n: t for n, t in model.state_dict().items() if not n.startswith("classifier")})
    valid = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    expected = motion_loss(pretraining(clip, None, motion, valid), valid, CONFIG)
    matched = supervised_loss(model(clip, motion, valid), LABELS, valid, CONFIG).motion
    torch.testing.assert_close(matched.loss, expected.loss)
    assert matched.candidates == expected.candidates == 5 * 4


def test_evaluation_needs_clips_only_and_has_no_dropout() -> None:
    model, (clip, _, motion) = built(), random_inputs(SMALL)
    with pytest.raises(ValueError, match="motion_BWCTHW"):
        model(clip)
    features: Tensor = model(clip, motion).embeddings.feature_BF
    assert features.shape == (2, model.backbone.feature_channels)
    model.eval()
    one, two = model(clip), model(clip)
    assert torch.equal(one.logits_BK, two.logits_BK)
    assert one.logits_BK.shape == (2, 5)
    assert one.embeddings.motion_query_BPD is None
    torch.testing.assert_close(one.logits_BK, model.classifier(one.embeddings.feature_BF))


def test_errors_name_the_invalid_size() -> None:
    with pytest.raises(ValueError, match=r"classes: must be .* got 1"):
        SupervisedModel(PLAIN, classes=1)
    with pytest.raises(ValueError, match=r"classifier_dropout: must be .* got 1"):
        replace(PLAIN, classifier_dropout=1.0)
