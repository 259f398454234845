"""Direction prediction: targets from moving squares, mirrored with flips; the loss against a loop and over ranks."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn import functional as F

from cmd_train.augment.config import AugmentConfig
from cmd_train.augment.space import crop_motion
from cmd_train.losses.directions import STILL, DirectionTargets, direction_loss, direction_targets
from cmd_train.models.config import ModelConfig
from cmd_train.models.pretrain import PretrainModel
from tests.process_groups import two_rank_group
from tests.unit.cmd_train.augment.samples import HEADER, NEUTRAL, crop_of

CLAMP_PX = 10.0
RIGHT, DOWN_RIGHT, DOWN, LEFT, UP = 1, 2, 3, 5, 7


def targets_of(motion: Tensor, parts: int = 1, directions: int = 8, still_px: float = 0.35) -> DirectionTargets:
    return direction_targets(motion, (4, 4), parts=parts, directions=directions, still_px=still_px, clamp_px=CLAMP_PX)


def uniform_motion(dx: float, dy: float, frames: int = 4) -> Tensor:
    vector = torch.tensor([dx / CLAMP_PX, dy / CLAMP_PX, 1.0])
    return vector.view(1, 3, 1, 1, 1).expand(1, 3, frames, 14, 14).clone()


@pytest.mark.parametrize(
    ("vector", "expected"),
    [
        ((3, 0), RIGHT),
        ((3, 3), DOWN_RIGHT),
        ((0, 2), DOWN),
        ((-1, 0.1), LEFT),
        ((0, -5), UP),
        ((0.2, -0.2), STILL),
        ((0, 0), STILL),
    ],
)
def test_uniform_motion_has_the_same_class_everywhere(vector: tuple[float, float], expected: int) -> None:
    targets = targets_of(uniform_motion(*vector))
    assert targets.class_BQHW.shape == (1, 1, 4, 4)
    assert (targets.class_BQHW == expected).all()
    assert targets.valid_BQHW.all()


def test_sectors_are_equally_wide() -> None:
    angles = np.linspace(0, 2 * math.pi, 720, endpoint=False) + 1e-4
    motion = torch.cat([uniform_motion(5 * math.cos(a), 5 * math.sin(a), frames=1) for a in angles])
    counts = np.bincount(targets_of(motion, directions=6).class_BQHW[:, 0, 0, 0].numpy(), minlength=7)
    assert counts.tolist() == [0, 120, 120, 120, 120, 120, 120]


def moving_square(rows: slice, columns: slice, dx_px: float, dy_px: float) -> tuple[Tensor, Tensor]:
    """Motion of 4 frames in which one square of the stored grid moves and the rest stands still."""
    grid = torch.zeros(1, 4, 2, *HEADER.grid_shape, dtype=torch.int16)
    grid[:, :, 0, rows, columns], grid[:, :, 1, rows, columns] = round(4 * dx_px), round(4 * dy_px)
    return grid, torch.ones(1, 4, *HEADER.grid_shape, dtype=torch.bool)


@pytest.mark.parametrize("flip", [False, True])
def test_a_moving_square_has_its_class_at_its_position(flip: bool) -> None:
    # The upper left quarter moves right; mirrored, the upper right quarter moves left.
    rows, columns = HEADER.grid_shape
    grid, valid = moving_square(slice(0, rows // 2), slice(0, columns // 2), dx_px=3, dy_px=0)
    motion = crop_motion(grid, valid, crop_of((0, 0, 1, 1), flip=flip), NEUTRAL, HEADER)
    found = targets_of(motion).class_BQHW[0, 0]
    expected = torch.full((4, 4), STILL)
    expected[:2, 2:] = LEFT if flip else STILL
    expected[:2, :2] = STILL if flip else RIGHT
    assert found.tolist() == expected.tolist()


def test_targets_follow_the_crop() -> None:
    rows, columns = HEADER.grid_shape
    grid, valid = moving_square(slice(rows // 2, rows), slice(0, columns), dx_px=0, dy_px=-2)
    config = AugmentConfig(**{**NEUTRAL.__dict__, "rescale_vectors": True})
    motion = crop_motion(grid, valid, crop_of((0.25, 0.5, 0.5, 0.5)), config, HEADER)
    assert (targets_of(motion).class_BQHW == UP).all()
    # In the enlarged crop the motion is twice as fast.
    assert (targets_of(motion, still_px=3.9).class_BQHW == UP).all()
    assert (targets_of(motion, still_px=4.1).class_BQHW == STILL).all()


def test_invalid_cells_do_not_count() -> None:
    motion = uniform_motion(4, 0)
    motion[..., 7:] = 0  # the right half has no vectors
    targets = targets_of(motion)
    assert targets.valid_BQHW[0, 0].tolist() == [[True, True, False, False]] * 4
    assert (targets.class_BQHW[..., :2] == RIGHT).all()
    motion = uniform_motion(0.4, 0)
    motion[:, :, 1:] = 0  # a single valid frame: the mean is over valid vectors only
    assert (targets_of(motion).class_BQHW == RIGHT).all()


def test_parts_of_the_window_are_in_temporal_order() -> None:
    motion = torch.cat([uniform_motion(2, 0, frames=2), uniform_motion(0, 2, frames=2)], dim=2)
    targets = targets_of(motion, parts=2)
    assert (targets.class_BQHW[:, 0] == RIGHT).all()
    assert (targets.class_BQHW[:, 1] == DOWN).all()
    with pytest.raises(ValueError, match="must divide the 4 frames"):
        targets_of(motion, parts=3)
    with pytest.raises(ValueError, match="3 channels"):
        targets_of(motion[:, :2])


def random_case(samples: int, seed: int) -> tuple[Tensor, DirectionTargets]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(samples, 9, 2, 3, 3, generator=generator)
    classes = torch.randint(0, 9, (samples, 2, 3, 3), generator=generator)
    valid = torch.rand(samples, 2, 3, 3, generator=generator) > 0.3
    return scores, DirectionTargets(class_BQHW=classes, valid_BQHW=valid)


def test_loss_equals_a_loop() -> None:
    scores, targets = random_case(3, seed=1)
    total = weights = hits = moving = 0.0
    frequency = [0] * 9
    for place in np.ndindex(3, 2, 3, 3):
        if not targets.valid_BQHW[place]:
            continue
        own = int(targets.class_BQHW[place])
        values = scores[(place[0], slice(None), *place[1:])].double()
        weight = 0.15 if own == STILL else 1.0
        total += weight * (math.log(float(values.exp().sum())) - float(values[own]))
        weights += weight
        if own != STILL:
            moving += 1
            hits += int(values.argmax()) == own
            frequency[own] += 1
    loss = direction_loss(scores, targets, still_weight=0.15)
    assert loss.loss.item() == pytest.approx(total / weights, rel=1e-5)
    assert loss.top1.item() == pytest.approx(hits / moving)
    assert loss.majority.item() == pytest.approx(max(frequency) / moving)
    assert loss.moving.item() == pytest.approx(moving / targets.valid_BQHW.sum().item())
    assert 0 < loss.top1 < 1


def test_loss_without_valid_positions_is_zero_with_zero_gradients() -> None:
    scores, targets = random_case(2, seed=2)
    scores.requires_grad_()
    nothing = DirectionTargets(class_BQHW=targets.class_BQHW, valid_BQHW=torch.zeros_like(targets.valid_BQHW))
    loss = direction_loss(scores, nothing, still_weight=0.15).loss
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(scores.grad, torch.zeros_like(scores))


def _loss_of_rank(rank: int, folder: str) -> None:
    with two_rank_group(rank, folder):
        scores, targets = random_case(6, seed=3)
        # Different numbers of samples, and of valid positions.
        mine = slice(0, 2) if rank == 0 else slice(2, 6)
        own = scores[mine].clone().requires_grad_()
        part = DirectionTargets(class_BQHW=targets.class_BQHW[mine], valid_BQHW=targets.valid_BQHW[mine])
        loss = direction_loss(own, part, still_weight=0.15).loss
        loss.backward()
        torch.save((loss.detach(), own.grad), Path(folder) / f"{rank}.pt")


@pytest.mark.slow
def test_the_mean_over_ranks_is_the_loss_of_the_global_batch(tmp_path: Path) -> None:
    mp.spawn(_loss_of_rank, (str(tmp_path),), nprocs=2)
    scores, targets = random_case(6, seed=3)
    scores.requires_grad_()
    expected = direction_loss(scores, targets, still_weight=0.15).loss
    expected.backward()
    losses, gradients = zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in range(2)), strict=True)
    assert sum(losses).item() / 2 == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(torch.cat(gradients) / 2, scores.grad)


def test_directions_of_moving_texture_are_learned() -> None:
    """A small R(2+1)D network learns the direction of a drifting texture in seconds."""
    torch.manual_seed(0)
    config = ModelConfig(
        backbone="r2plus1d_10",
        width=8,
        shortcut="average",
        clip_frames=8,
        crop_size=32,
        context_head=False,
        motion_target="directions",
        motion_window="clip",
        direction_parts=1,
        directions=4,
    )
    model = PretrainModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    steps = ((1, 0), (0, 1), (-1, 0), (0, -1))
    accuracies = []
    for _ in range(60):
        number = torch.randint(4, (16,))
        texture = F.interpolate(torch.randn(16, 3, 16, 16), scale_factor=4.0, mode="bilinear")
        clips = torch.stack(
            [
                torch.stack([t.roll((3 * f * steps[n][1], 3 * f * steps[n][0]), (1, 2)) for f in range(8)], 1)
                for t, n in zip(texture, number.tolist(), strict=True)
            ]
        )[..., :32, :32]
        classes = (1 + number).view(16, 1, 1, 1).expand(16, 1, 2, 2)
        targets = DirectionTargets(class_BQHW=classes, valid_BQHW=torch.ones_like(classes, dtype=torch.bool))
        output = model(clips).direction_BKQHW
        loss = direction_loss(output, targets, still_weight=0.15)
        accuracies.append(loss.top1.item())
        optimizer.zero_grad()
        loss.loss.backward()
        optimizer.step()
    assert np.mean(accuracies[:5]) < 0.5
    assert np.mean(accuracies[-10:]) > 0.9
