"""The usual linear probe: BatchNorm and a linear layer, trained by SGD on the features of single clips.

Features are read in minibatches from the memory-mapped file and are never copied as a whole, so that Kinetics fits. All
learning rates and weight decays are trained at once on the same minibatches.

Shape legend: T training videos, N test videos, B videos of a minibatch, F features, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from cmd_eval.features.store import Features

LEARNING_RATES = (0.003, 0.03, 0.3)
WEIGHT_DECAYS = (0.0, 1e-4, 1e-2)
_MOMENTUM = 0.9
_READ_BLOCK = 1024


@dataclass(frozen=True, kw_only=True)
class SgdSettings:
    """Settings of training.

    Attributes:
        epochs: passes over the training videos, one random clip of each; more if there are fewer than ``min_steps``
            minibatches.
        min_steps: minimum number of minibatches.
        batch_size: videos per minibatch.
        device: ``auto``, ``cpu`` or ``cuda``.
        seed: random seed of initial weights, order and clips.
    """

    epochs: int = 30
    min_steps: int = 500
    batch_size: int = 256
    device: str = "auto"
    seed: int = 0


@dataclass(frozen=True)
class ClipFeatures:
    """Features of the clips of some videos, read on access.

    Attributes:
        features: all videos. Readouts that concatenate clips have one sample per video.
        rows: rows of the videos.
    """

    features: Features
    rows: NDArray[np.int64]
    _table: NDArray[np.float32] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        ordered = self.features.table_VF.shape[1] != self.features.mean_VF.shape[1]
        clips = self.features.clips_VNF
        table = self.features.table_VF[:, None] if clips is None or ordered else clips
        object.__setattr__(self, "_table", table)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def clips(self) -> int:
        """Number of samples of each video."""
        return int(self._table.shape[1])

    @property
    def width(self) -> int:
        """Number of features F."""
        return int(self._table.shape[2])

    def one_clip(self, places: NDArray[np.int64], clip_B: NDArray[np.int64]) -> Tensor:
        """Return the features (B, F) of one clip of each video."""
        return self._finite(self._table[self.rows[places], clip_B])

    def all_clips(self, block: slice) -> Tensor:
        """Return the features (B, clips, F) of all clips."""
        return self._finite(self._table[self.rows[block]])

    def _finite(self, values: NDArray[np.float32]) -> Tensor:
        if not np.isfinite(values).all():
            raise ValueError(
                "the features of a video are not finite; check the checkpoint and recompute them with --fresh"
            )
        return torch.from_numpy(np.ascontiguousarray(values))


class SgdProbe:
    """BatchNorm without parameters, followed by one linear layer for each pair of learning rate and weight decay.

    Args:
        pairs: learning rates and weight decays to train.
        settings: settings of training.

    Attributes:
        classes_: (K,) class numbers of the training videos.
    """

    def __init__(self, pairs: Sequence[tuple[float, float]], settings: SgdSettings) -> None:
        self.pairs, self.settings = tuple(pairs), settings
        self.device = _device(settings.device)

    def fit(self, clips: ClipFeatures, number_T: NDArray[np.int64]) -> SgdProbe:
        """Train on the clips of at least two videos with class numbers ``number_T``.

        Raises:
            ValueError: there are fewer than two videos.
        """
        if len(clips) < 2:
            raise ValueError(f"train: {len(clips)} videos, need at least two")
        settings = self.settings
        self.classes_, place_T = np.unique(number_T, return_inverse=True)
        rng = np.random.default_rng(settings.seed)
        self._norm = nn.BatchNorm1d(clips.width, affine=False).to(self.device)
        generator = torch.Generator().manual_seed(settings.seed)
        weight = 0.01 * torch.randn(len(self.classes_), clips.width, generator=generator)
        self._layers = [nn.Linear(clips.width, len(self.classes_)).to(self.device) for _ in self.pairs]
        for layer in self._layers:
            nn.init.zeros_(layer.bias)
            layer.weight.data.copy_(weight)  # the same for all
        groups = [
            {"params": layer.parameters(), "lr": rate, "weight_decay": decay}
            for layer, (rate, decay) in zip(self._layers, self.pairs, strict=True)
        ]
        optimizer = torch.optim.SGD(groups, lr=0.0, momentum=_MOMENTUM)
        batch = min(settings.batch_size, len(clips))
        per_epoch = len(clips) // batch
        epochs = max(settings.epochs, math.ceil(settings.min_steps / per_epoch))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * per_epoch)
        for _ in range(epochs):
            order = rng.permutation(len(clips))
            for places in np.split(order[: per_epoch * batch], per_epoch):
                feature_BF = clips.one_clip(places, rng.integers(clips.clips, size=batch)).to(self.device)
                truth_B = torch.from_numpy(place_T[places]).to(self.device)
                normed_BF = self._norm(feature_BF)
                # The sum trains each layer on its own loss.
                loss = torch.stack([F.cross_entropy(layer(normed_BF), truth_B) for layer in self._layers]).sum()
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call] # torch has no annotation here
                optimizer.step()
                schedule.step()
        return self

    @torch.no_grad()
    def probabilities(self, clips: ClipFeatures) -> NDArray[np.float64]:
        """Return the softmax averaged over the clips of each video, (pairs, N, K)."""
        self._norm.eval()
        found = []
        for start in range(0, len(clips), _READ_BLOCK):
            feature_BCF = clips.all_clips(slice(start, start + _READ_BLOCK)).to(self.device)
            normed = self._norm(feature_BCF.flatten(0, 1))
            parts = [
                layer(normed).double().softmax(1).view(*feature_BCF.shape[:2], -1).mean(1) for layer in self._layers
            ]
            found.append(torch.stack(parts).cpu().numpy())
        probability: NDArray[np.float64] = np.concatenate(found, axis=1)
        return probability


def grid() -> list[tuple[float, float]]:
    """Return all pairs of learning rate and weight decay, strongest weight decay last."""
    return list(product(LEARNING_RATES, WEIGHT_DECAYS))


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
