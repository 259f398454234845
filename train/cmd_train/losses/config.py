"""Settings of the losses; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from cmd_extract.system.validation import require_choice, require_range

DEFAULT_TEMPERATURE = 0.1
MotionTarget = Literal["features", "directions"]
MOTION_TARGETS: tuple[MotionTarget, ...] = get_args(MotionTarget)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Settings of the two losses, context matching and motion prediction.

    Attributes:
        temperature: divisor of the similarities in both losses.
        context_weight, motion_weight: weights of the two losses; the paper uses their unweighted sum.
        motion_own_position: restrict the candidates of a predicted position to features at its own position. In the
            paper they are features of all positions, which rewards telling positions apart; that takes no motion.
        drop_static_px: exclude predicted positions whose mean speed over their window, in pixels per frame, is lower
            than this from the queries; 0 keeps all, as in the paper. The metric ``motion_static_share`` records the
            excluded share.
        motion_target: what motion prediction predicts, see `ModelConfig`. ``motion_own_position`` and
            ``drop_static_px`` concern "features", ``still_px`` and ``still_weight`` "directions".
        still_px: speed below which a position counts as still, in pixels per frame.
        still_weight: weight of still positions in the cross-entropy; moving ones have weight 1.
    """

    temperature: float = DEFAULT_TEMPERATURE
    context_weight: float = 1.0
    motion_weight: float = 1.0
    motion_own_position: bool = False
    drop_static_px: float = 0.0
    motion_target: MotionTarget = "features"
    still_px: float = 0.35
    still_weight: float = 0.15

    def __post_init__(self) -> None:
        require_range(self, "temperature", gt=0)
        require_range(self, "context_weight", "motion_weight", "drop_static_px", ge=0)
        require_range(self, "still_px", "still_weight", ge=0)
        require_choice(self, "motion_target", MOTION_TARGETS)
