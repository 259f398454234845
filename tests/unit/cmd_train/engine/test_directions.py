"""Both objectives with directions: targets reach the model's scores unmirrored."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from cmd_train.config import TrainConfig
from cmd_train.data.batch import Batch
from cmd_train.engine.objective import PretrainObjective
from cmd_train.engine.supervised_objective import SupervisedObjective
from cmd_train.losses.outputs import ModelOutput, SupervisedOutput
from tests.unit.cmd_train.engine.test_step import HEADER, SIZE, batch, configured

RIGHT, LEFT, UP = 1, 5, 7


def directions_config(**changes: object) -> TrainConfig:
    return configured(
        loss__motion_target="directions",
        sampling__motion_window="future",
        sampling__temporal_negatives=0,
        augment__crop_area=(1.0, 1.0),
        **changes,
    )


def two_motions() -> Batch:
    """The left half of the picture moves to the right by 2 pixels per frame, the right half up by 1."""
    motion = torch.zeros(SIZE, 1, 4, 2, 10, 12, dtype=torch.int16)
    motion[..., 0, :, :6], motion[..., 1, :, 6:] = 8, -4
    return replace(
        batch(),
        motion_quarter_px_BWTCHW=motion,
        motion_valid_BWTHW=torch.ones(SIZE, 1, 4, 10, 12, dtype=torch.bool),
        window_valid_BW=torch.ones(SIZE, 1, dtype=torch.bool),
    )


class Certain(nn.Module):
    """Predicts one class in the left column of the token map and another in the right column, with certainty."""

    def __init__(self, left: int, right: int, *, supervised: bool) -> None:
        super().__init__()
        self.supervised = supervised
        self.score_KW = torch.zeros(9, 2)
        self.score_KW[left, 0] = self.score_KW[right, 1] = 50.0

    def forward(self, clip_B3THW: Tensor, *_: object) -> ModelOutput | SupervisedOutput:
        count = len(clip_B3THW)
        scores = self.score_KW[None, :, None, None].expand(count, 9, 2, 2, 2)
        output = ModelOutput(feature_BF=torch.randn(count, 4), direction_BKQHW=scores)
        return SupervisedOutput(logits_BK=torch.zeros(count, SIZE), embeddings=output) if self.supervised else output


@pytest.mark.parametrize("supervised", [False, True])
@pytest.mark.parametrize("flip", [False, True])
def test_targets_are_mirrored_with_the_clip_only(supervised: bool, flip: bool) -> None:
    config = directions_config(augment__flip_probability=float(flip), model__context_head=False)
    objective = (
        SupervisedObjective(config, HEADER, range(SIZE), SIZE) if supervised else PretrainObjective(config, HEADER)
    )
    classes = (UP, LEFT) if flip else (RIGHT, UP)
    metrics = objective(Certain(*classes, supervised=supervised), two_motions()).metrics
    assert metrics["motion_top1"] == 1
    assert metrics["motion_loss"] < 1e-6
    assert metrics["motion_moving_share"] == 1
    assert metrics["motion_majority"] == 0.5
    wrong = objective(Certain(*classes[::-1], supervised=supervised), two_motions()).metrics
    assert wrong["motion_top1"] == 0


def test_the_speed_and_weight_of_still_positions_are_settings() -> None:
    model = Certain(RIGHT, RIGHT, supervised=False)

    def metrics(still_px: float, still_weight: float) -> dict[str, float]:
        config = directions_config(
            augment__flip_probability=0.0,
            model__context_head=False,
            loss__still_px=still_px,
            loss__still_weight=still_weight,
        )
        found = PretrainObjective(config, HEADER)(model, two_motions()).metrics
        return {name: value.item() for name, value in found.items()}

    assert metrics(0.5, 0.25)["motion_moving_share"] == 1
    slow = metrics(1.5, 0.25)
    assert (slow["motion_moving_share"], slow["motion_top1"]) == (0.5, 1)
    # The right column, now still, is predicted wrongly at a cost of 50, the difference of the scores.
    assert slow["motion_loss"] == pytest.approx(50 * 0.25 / 1.25)
    assert metrics(1.5, 1.0)["motion_loss"] == pytest.approx(25)
    assert metrics(3.0, 0.25)["motion_moving_share"] == 0
