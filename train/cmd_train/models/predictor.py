"""Motion predictor: a Transformer from the clip tokens to features of the future motion.

Shape legend:
    B  clips of a batch
    S  source positions (tokens of the clip: time, rows, columns)
    P  target positions (rows and columns of the predicted motion)
    C  channels of a token
    D  width of the Transformer
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

# The scale of the tokens themselves. With 0.02, common in language models, attention starts out uniform and all
# positions predict the same: the motion loss then stays at chance for hundreds of steps (measured on the demo videos).
POSITION_INITIAL_STD = 1.0


class FeedForward(nn.Module):
    """Two linear layers with ReLU and dropout in between.

    Args:
        width: input and output features.
        hidden: hidden features.
        dropout: dropout probability of the hidden features.
    """

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.expand = nn.Linear(width, hidden)
        self.dropout = nn.Dropout(dropout)
        self.contract = nn.Linear(hidden, width)

    def forward(self, state_BSD: Tensor) -> Tensor:
        """Map (B, S, D) to (B, S, D)."""
        return self.contract(self.dropout(torch.relu(self.expand(state_BSD))))  # type: ignore[no-any-return] # modules return Any


class PositionedAttention(nn.Module):
    """Multi-head attention with positions added to queries and keys but not to values, then add and norm.

    Args:
        width: features per token.
        heads: attention heads.
        dropout: dropout probability of attention weights and of output features.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width)

    def forward(self, state_BPD: Tensor, position_PD: Tensor, source_BSD: Tensor, source_position_SD: Tensor) -> Tensor:
        """Attend from a state (B, P, D) to a source (B, S, D), both with learned positions; return (B, P, D)."""
        attended_BPD, _ = self.attention(
            state_BPD + position_PD, source_BSD + source_position_SD, source_BSD, need_weights=False
        )
        return self.norm(state_BPD + self.dropout(attended_BPD))  # type: ignore[no-any-return] # modules return Any


class TransformerLayer(nn.Module):
    """Post-norm Transformer layer: self-attention, cross-attention (decoder only) and feed-forward network.

    Args:
        width: features per token.
        heads: attention heads.
        hidden: hidden features of the feed-forward network.
        dropout: probability of every dropout in the layer.
        cross_attention: also attend to a memory (decoder layer).
    """

    def __init__(self, *, width: int, heads: int, hidden: int, dropout: float, cross_attention: bool) -> None:
        super().__init__()
        self.self_attention = PositionedAttention(width, heads, dropout)
        self.cross_attention = PositionedAttention(width, heads, dropout) if cross_attention else None
        self.feed_forward = FeedForward(width, hidden, dropout)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        state_BPD: Tensor,
        position_PD: Tensor,
        memory_BSD: Tensor | None = None,
        memory_position_SD: Tensor | None = None,
    ) -> Tensor:
        """Update a state (B, P, D); a decoder layer attends to a memory (B, S, D).

        Raises:
            ValueError: the memory is missing in a decoder layer, or given to an encoder layer.
        """
        state_BPD = self.self_attention(state_BPD, position_PD, state_BPD, position_PD)
        if (self.cross_attention is None) != (memory_BSD is None):
            raise ValueError("memory_BSD: required by decoder layers and not allowed in encoder layers")
        if self.cross_attention is not None:
            state_BPD = self.cross_attention(state_BPD, position_PD, memory_BSD, memory_position_SD)
        return self.norm(state_BPD + self.dropout(self.feed_forward(state_BPD)))  # type: ignore[no-any-return] # modules return Any


class MotionPredictor(nn.Module):
    """Encoder-decoder Transformer that predicts one feature per position of the future motion (as in the paper).

    Args:
        token_channels: channels C per token.
        source_count: tokens S per clip.
        target_count: predicted positions P.
        width: features D.
        heads: attention heads; must divide the width.
        hidden: hidden features of the feed-forward networks.
        encoder_layers: layers over the tokens.
        decoder_layers: layers over the predicted positions.
        dropout: probability of every dropout.
    """

    def __init__(
        self,
        *,
        token_channels: int,
        source_count: int,
        target_count: int,
        width: int,
        heads: int,
        hidden: int,
        encoder_layers: int,
        decoder_layers: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.project = nn.Linear(token_channels, width, bias=False)
        self.source_position_SD = nn.Parameter(torch.randn(source_count, width) * POSITION_INITIAL_STD)
        self.target_position_PD = nn.Parameter(torch.randn(target_count, width) * POSITION_INITIAL_STD)

        layer = partial(TransformerLayer, width=width, heads=heads, hidden=hidden, dropout=dropout)
        self.encoder = nn.ModuleList(layer(cross_attention=False) for _ in range(encoder_layers))
        self.decoder = nn.ModuleList(layer(cross_attention=True) for _ in range(decoder_layers))

    def forward(self, tokens_BCTHW: Tensor) -> Tensor:
        """Predict motion features from a token map.

        Args:
            tokens_BCTHW: token map with T * H * W = S.

        Returns:
            Predicted features (B, P, D), before the embedding head.

        Raises:
            ValueError: the map does not have S tokens.
        """
        memory_BSD = self.project(tokens_BCTHW.flatten(2).transpose(1, 2))
        source_count = len(self.source_position_SD)
        if memory_BSD.shape[1] != source_count:
            raise ValueError(
                f"tokens_BCTHW: must have {source_count} tokens per clip, got {memory_BSD.shape[1]} "
                f"(shape {tuple(tokens_BCTHW.shape)})"
            )
        for layer in self.encoder:
            memory_BSD = layer(memory_BSD, self.source_position_SD)
        state_BPD: Tensor = memory_BSD.new_zeros(len(memory_BSD), *self.target_position_PD.shape)
        for layer in self.decoder:
            state_BPD = layer(state_BPD, self.target_position_PD, memory_BSD, self.source_position_SD)
        return state_BPD
