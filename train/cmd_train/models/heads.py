"""Heads on a backbone's token map: MLP embedding heads and motion prediction (as in the paper).

Shape legend:
    B  samples of a batch
    C  channels, T  frames, H  rows, W  columns (in `BWCTHW` and `BWPD` the first W counts motion windows)
    N  windows of all samples
    P  positions of the predicted motion (rows times columns of the token map)
    D  features of an embedding
    Q  parts of the motion window, K  classes of directions
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmd_train.models.config import ModelConfig
from cmd_train.models.encoders import MotionEncoder
from cmd_train.models.predictor import MotionPredictor


class EmbeddingHead(nn.Module):
    """MLP head: linear, BatchNorm, ReLU, linear without bias, BatchNorm, L2 normalization (as in the paper).

    Args:
        in_features: input features.
        hidden: hidden features.
        out_features: embedding dimension D.
    """

    def __init__(self, in_features: int, hidden: int, out_features: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(in_features, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, out_features, bias=False),
            nn.BatchNorm1d(out_features),
        )

    def forward(self, feature: Tensor) -> Tensor:
        """Map (..., in_features) to (..., D); BatchNorm statistics are computed over all leading dimensions."""
        embedded_ND = self.layers(feature.flatten(0, -2))
        # In half precision, the norm would be off by up to one percent.
        return F.normalize(embedded_ND.float(), dim=-1).view(*feature.shape[:-1], -1)


class MotionHead(nn.Module):
    """Motion prediction: predictor, motion encoder and their embedding heads; works with any backbone's token map.

    Args:
        config: sizes; its backbone and head switches are ignored.
        token_channels: channels of the token map.
    """

    def __init__(self, config: ModelConfig, *, token_channels: int) -> None:
        super().__init__()
        time, rows, columns = config.token_grid
        self.motion_shape = config.motion_shape
        self.predictor = MotionPredictor(
            token_channels=token_channels,
            source_count=time * rows * columns,
            target_count=rows * columns,
            width=config.predictor_width,
            heads=config.predictor_heads,
            hidden=config.predictor_ff,
            encoder_layers=config.encoder_layers,
            decoder_layers=config.decoder_layers,
            dropout=config.dropout,
        )
        self.encoder = MotionEncoder(
            motion_input=config.motion_input, width=config.encoder_width, shortcut=config.shortcut
        )
        self.query_head = EmbeddingHead(config.predictor_width, config.head_hidden, config.embedding_dim)
        self.key_head = EmbeddingHead(self.encoder.out_channels, config.head_hidden, config.embedding_dim)

    def forward_query(self, tokens_BCTHW: Tensor) -> Tensor:
        """Predict the embeddings (B, P, D) of the motion that follows the clips from their token map."""
        return self.query_head(self.predictor(tokens_BCTHW))  # type: ignore[no-any-return] # modules return Any

    def forward_key(self, motion_BWCTHW: Tensor, window_valid_BW: Tensor | None = None) -> Tensor:
        """Embed motion windows (B, W, C, T, H, W) per position, as (B, W, P, D).

        Args:
            motion_BWCTHW: motion windows.
            window_valid_BW: whether each window exists (all if None). Missing windows do not affect the BatchNorm
                statistics; their embeddings are meaningless.

        Raises:
            ValueError: the windows do not have the configured shape.
        """
        if motion_BWCTHW.ndim != 6 or motion_BWCTHW.shape[2:] != self.motion_shape:
            raise ValueError(
                f"motion_BWCTHW: must have shape (B, W, *{self.motion_shape}), got {tuple(motion_BWCTHW.shape)}"
            )
        motion_NCTHW = motion_BWCTHW.flatten(0, 1)
        if window_valid_BW is not None:
            motion_NCTHW = replace_missing_windows(motion_NCTHW, window_valid_BW.flatten())
        map_NDTHW = self.encoder(motion_NCTHW)
        feature_NPD = map_NDTHW.flatten(2).transpose(1, 2)
        return self.key_head(feature_NPD).unflatten(0, motion_BWCTHW.shape[:2])  # type: ignore[no-any-return] # modules return Any

    def forward(
        self, tokens_BCTHW: Tensor, motion_BWCTHW: Tensor, window_valid_BW: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the predicted embeddings (B, P, D) and those of the windows (B, W, P, D)."""
        return self.forward_query(tokens_BCTHW), self.forward_key(motion_BWCTHW, window_valid_BW)


class DirectionHead(nn.Module):
    """Direct prediction of quantized motion: a linear layer at every position of the token map.

    Args:
        config: sizes; the number of directions, parts and the kind of motion window.
        token_channels: channels of the token map.
    """

    def __init__(self, config: ModelConfig, *, token_channels: int) -> None:
        super().__init__()
        self.per_step = config.motion_window == "clip"
        self.parts, self.classes = config.direction_parts, config.directions + 1
        self.classifier = nn.Linear(token_channels, self.parts * self.classes)

    def forward(self, tokens_BCTHW: Tensor) -> Tensor:
        """Return class scores (B, K, Q, H, W) for all parts Q of the motion window, in temporal order."""
        if not self.per_step:
            tokens_BCTHW = tokens_BCTHW.mean(2, keepdim=True)
        scores_BTHWN: Tensor = self.classifier(tokens_BCTHW.permute(0, 2, 3, 4, 1))
        scores_BTHWQK = scores_BTHWN.view(*scores_BTHWN.shape[:-1], self.parts, self.classes)
        scores_BKQHW: Tensor = scores_BTHWQK.permute(0, 5, 1, 4, 2, 3).flatten(2, 3)
        return scores_BKQHW


def replace_missing_windows(motion_NCTHW: Tensor, valid_N: Tensor) -> Tensor:
    """Replace missing windows with existing ones, round-robin, so that BatchNorm statistics cover real motion only.

    Dropping missing windows would be simpler, but would make the number of windows vary between batches, which forces
    a device synchronization and recompilation of compiled models.

    Args:
        motion_NCTHW: motion windows.
        valid_N: bool, whether each window exists; if none does, all are returned unchanged.

    Returns:
        Copy of the same shape (N, C, T, H, W).
    """
    valid_N = valid_N.bool()
    place_N = torch.arange(len(valid_N), device=valid_N.device)
    existing_first_N = valid_N.logical_not().to(torch.uint8).argsort(stable=True)
    existing = valid_N.sum()
    turn_N = (valid_N.logical_not().cumsum(0) - 1).clamp(min=0) % existing.clamp(min=1)
    return motion_NCTHW[torch.where(valid_N | (existing == 0), place_N, existing_first_N[turn_N])]
