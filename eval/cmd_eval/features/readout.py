"""Readouts: which features of a clip are used, and how those of a video's clips are combined; imports no torch.

| name | per clip | clips of a video |
|---|---|---|
| ``mean`` | pooled backbone feature | mean (the published protocol) |
| ``ordered`` | pooled backbone feature | concatenated in temporal order |
| ``grid`` | token map, average-pooled to 2 x 2 positions; time steps are kept | mean |
| ``grid-ordered`` | as ``grid`` | concatenated in temporal order |
| ``directions`` | predicted motion directions, averaged over positions | concatenated in temporal order |

The mean over clips discards their order, and with it everything that distinguishes a path from its reverse.
Concatenated features are comparable because evaluation clips are evenly spaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

POOLED_FEATURES = "backbone, pooled"
GRID_FEATURES = "backbone, 2 x 2 grid"
DIRECTION_FEATURES = "predicted directions"
NETWORK_FEATURES = (POOLED_FEATURES, GRID_FEATURES, DIRECTION_FEATURES)
"""Kinds of clip features that a network computes, as recorded in features files."""

ReadoutName = Literal["mean", "ordered", "grid", "grid-ordered", "directions"]


@dataclass(frozen=True)
class Readout:
    """A readout.

    Attributes:
        features: kind of the clip features, one of ``NETWORK_FEATURES``.
        ordered: concatenate the clips instead of averaging them.
    """

    features: str
    ordered: bool


READOUTS: Mapping[ReadoutName, Readout] = {
    "mean": Readout(POOLED_FEATURES, ordered=False),
    "ordered": Readout(POOLED_FEATURES, ordered=True),
    "grid": Readout(GRID_FEATURES, ordered=False),
    "grid-ordered": Readout(GRID_FEATURES, ordered=True),
    "directions": Readout(DIRECTION_FEATURES, ordered=True),
}
DEFAULT_READOUT: ReadoutName = "mean"


def file_readout(name: ReadoutName) -> ReadoutName:
    """Return the first readout with the same clip features; it is recorded in files that several readouts share."""
    return next(other for other, readout in READOUTS.items() if readout.features == READOUTS[name].features)
