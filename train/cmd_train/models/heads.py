"""What attaches to a backbone's token map: MLP heads and the whole of motion prediction (the paper).

Shape legend:
    B  samples of a batch
    C  channels, T  frames, H  rows, W  columns (in `BWCTHW` and `BWPD` the first W counts motion windows)
    N  windows of all samples
    P  positions of the predicted motion (rows times columns of the token map)
    D  features of an embedding
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmd_train.models.config import ModelConfig
from cmd_train.models.encoders import MotionEncoder
from cmd_train.models.predictor import MotionPredictor


class EmbeddingHead(nn.Module):
    """MLP head: linear, BatchNorm, ReLU, linear without bias, BatchNorm, unit length (the paper).

    Args:
        in_features: features read.
        hidden: features between.
        out_features: features D of the embedding.
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
        """Maps (..., in_features) to (..., D); leading dimensions share the BatchNorm's statistics."""
        embedded_ND = self.layers(feature.flatten(0, -2))
        # A length in half precision would be off by up to a percent.
        return F.normalize(embedded_ND.float(), dim=-1).view(*feature.shape[:-1], -1)


class MotionHead(nn.Module):
    """Motion prediction: predictor, motion encoder and their two heads; attaches to any backbone's token map.

    Args:
        config: sizes; its backbone and its two switches are not read here.
        token_channels: channels of the token map that will be read.
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
        self.encoder = MotionEncoder(motion_input=config.motion_input, width=config.encoder_width)
        self.query_head = EmbeddingHead(config.predictor_width, config.head_hidden, config.embedding_dim)
        self.key_head = EmbeddingHead(self.encoder.out_channels, config.head_hidden, config.embedding_dim)

    def forward_query(self, tokens_BCTHW: Tensor) -> Tensor:
        """Predicts embeddings (B, P, D) of the motion after the clips from their token map."""
        return self.query_head(self.predictor(tokens_BCTHW))  # type: ignore[no-any-return] # modules give Any

    def forward_key(self, motion_BWCTHW: Tensor, window_valid_BW: Tensor | None = None) -> Tensor:
        """Embeds motion windows (B, W, C, T, H, W) position by position, as (B, W, P, D).

        Args:
            motion_BWCTHW: motion windows.
            window_valid_BW: windows that exist (all if None). The others do not enter the BatchNorm statistics;
                what is returned for them is meaningless.

        Raises:
            ValueError: if a window does not have the configured shape.
        """
        if motion_BWCTHW.ndim != 6 or motion_BWCTHW.shape[2:] != self.motion_shape:
            raise ValueError(f"motion must be (B, W, *{self.motion_shape}), not {tuple(motion_BWCTHW.shape)}")
        motion_NCTHW = motion_BWCTHW.flatten(0, 1)
        if window_valid_BW is not None:
            motion_NCTHW = replace_missing_windows(motion_NCTHW, window_valid_BW.flatten())
        map_NDTHW = self.encoder(motion_NCTHW)
        feature_NPD = map_NDTHW.flatten(2).transpose(1, 2)
        return self.key_head(feature_NPD).unflatten(0, motion_BWCTHW.shape[:2])  # type: ignore[no-any-return] # modules give Any

    def forward(
        self, tokens_BCTHW: Tensor, motion_BWCTHW: Tensor, window_valid_BW: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns the predicted embeddings (B, P, D) and those of the windows (B, W, P, D)."""
        return self.forward_query(tokens_BCTHW), self.forward_key(motion_BWCTHW, window_valid_BW)


def replace_missing_windows(motion_NCTHW: Tensor, valid_N: Tensor) -> Tensor:
    """Puts existing windows in the places of missing ones, in turn, so that BatchNorm sees nothing but real motion.

    Leaving them out would be plainer, but the number of windows would then change from batch to batch: the device
    would have to wait for it, and a compiled model would be compiled anew.

    Args:
        motion_NCTHW: motion windows.
        valid_N: bool, windows that exist; if none does, all stay as they are.

    Returns:
        A copy of the same shape (N, C, T, H, W).
    """
    valid_N = valid_N.bool()
    place_N = torch.arange(len(valid_N), device=valid_N.device)
    existing_first_N = valid_N.logical_not().to(torch.uint8).argsort(stable=True)
    existing = valid_N.sum()
    turn_N = (valid_N.logical_not().cumsum(0) - 1).clamp(min=0) % existing.clamp(min=1)
    return motion_NCTHW[torch.where(valid_N | (existing == 0), place_N, existing_first_N[turn_N])]
