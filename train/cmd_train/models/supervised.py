"""Supervised action recognition, with motion prediction as a further loss if wanted (the paper's auxiliary task).

The motion head and its loss are those of pre-training; only labels take the place of context matching.

Shape legend:
    B  clips of a batch
    K  classes
    C  channels, T  frames, H  rows, W  columns (in `BWCTHW` and `BWPD` the first W counts motion windows)
    P  positions of the predicted motion, D  features of an embedding
"""

# ruff: noqa: N815 (carriers name the shapes of their tensors)

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from cmd_train.distributed.gather import Sizes
from cmd_train.losses.contrast import DEFAULT_TEMPERATURE, InfoNCEOutput
from cmd_train.losses.model_output import ModelOutput
from cmd_train.losses.pretrain import motion_loss
from cmd_train.models.backbones import build_backbone
from cmd_train.models.config import ModelConfig
from cmd_train.models.heads import MotionHead


@dataclass(frozen=True, kw_only=True)
class SupervisedOutput:
    """What a supervised model makes of a batch.

    Attributes:
        logits_BK: scores of the classes.
        embeddings: the pooled feature and, if motion was given, what the motion loss compares.
    """

    logits_BK: Tensor
    embeddings: ModelOutput


@dataclass(frozen=True, kw_only=True)
class SupervisedLoss:
    """The supervised loss and its parts.

    Attributes:
        total: weighted sum, with gradient.
        classification: mean cross-entropy over the rank's clips.
        top1: fraction of clips whose label has the highest score.
        motion: motion prediction; None where it is off.
    """

    total: Tensor
    classification: Tensor
    top1: Tensor
    motion: InfoNCEOutput | None


class SupervisedModel(nn.Module):
    """Backbone, dropout, linear classifier; with ``config.motion_head`` also motion prediction.

    Args:
        config: backbone, motion head and dropout; its context head is not read here.
        classes: classes K.

    Raises:
        ValueError: there are fewer than two classes.
    """

    def __init__(self, config: ModelConfig, *, classes: int) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"classes must be at least 2, not {classes}")
        self.config = config
        self.backbone = build_backbone(config.backbone, width=config.width)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(self.backbone.feature_channels, classes)
        # Drawn last, so that a run without the head starts from the same weights of everything else.
        if config.motion_head:
            self.motion = MotionHead(config, token_channels=self.backbone.token_channels)

    def forward(
        self, clip_B3THW: Tensor, motion_BWCTHW: Tensor | None = None, window_valid_BW: Tensor | None = None
    ) -> SupervisedOutput:
        """Classifies clips and, in training with the motion head, predicts what moves next.

        Args:
            clip_B3THW: clips, normalised RGB.
            motion_BWCTHW: motion windows, the predicted one first; needed in training if the head is on, and not
                read otherwise.
            window_valid_BW: windows that exist (all if None).

        Raises:
            ValueError: motion is needed and missing, or a shape is not the configured one.
        """
        encoded = self.backbone(clip_B3THW)
        feature_BF = encoded.pooled_BC
        query_BPD = key_BWPD = None
        if self.config.motion_head and self.training:
            if motion_BWCTHW is None:
                raise ValueError("motion_BWCTHW must be given in training: the motion head is on")
            query_BPD, key_BWPD = self.motion(encoded.tokens_BCTHW, motion_BWCTHW, window_valid_BW)
        return SupervisedOutput(
            logits_BK=self.classifier(self.dropout(feature_BF)),
            embeddings=ModelOutput(feature_BF=feature_BF, motion_query_BPD=query_BPD, motion_key_BWPD=key_BWPD),
        )


def supervised_loss(
    output: SupervisedOutput,
    label_B: Tensor,
    window_valid_BW: Tensor | None = None,
    *,
    motion_weight: float = 1.0,
    temperature: float = DEFAULT_TEMPERATURE,
    symmetric: bool = False,
    own_video: bool = False,
    own_place: bool = False,
    query_valid_BP: Tensor | None = None,
    rank_sizes: Sizes = None,
) -> SupervisedLoss:
    """Cross-entropy plus, where the model predicted motion, the weighted motion loss of pre-training.

    Args:
        output: of this rank's batch.
        label_B: int64, the clips' classes.
        window_valid_BW: motion windows that exist; None only without motion.
        motion_weight: weight of motion prediction, 0 or more.
        temperature: divides the similarities of motion prediction.
        symmetric, own_video, own_place, query_valid_BP: see ``cmd_train.losses.pretrain.motion_loss``.
        rank_sizes: samples of each rank; None if all have equally many. A rank's cross-entropy is weighed by its
            share, so that the mean over ranks is the mean over the global batch.

    Raises:
        ValueError: the weight is negative, or the flags are missing.
    """
    if not motion_weight >= 0:
        raise ValueError(f"motion_weight must be 0 or more, not {motion_weight}")
    logits_BK = output.logits_BK.float()
    share = 1.0 if rank_sizes is None else len(label_B) * len(rank_sizes) / sum(rank_sizes)
    classification = F.cross_entropy(logits_BK, label_B) * share
    top1 = (logits_BK.detach().argmax(1) == label_B).float().mean()
    if output.embeddings.motion_query_BPD is None:
        return SupervisedLoss(total=classification, classification=classification, top1=top1, motion=None)
    if window_valid_BW is None:
        raise ValueError("window_valid_BW must be given: the model predicts motion")
    motion = motion_loss(
        output.embeddings,
        window_valid_BW,
        temperature=temperature,
        symmetric=symmetric,
        own_video=own_video,
        own_place=own_place,
        query_valid_BP=query_valid_BP,
        rank_sizes=rank_sizes,
    )
    total = classification + motion_weight * motion.loss
    return SupervisedLoss(total=total, classification=classification, top1=top1, motion=motion)
