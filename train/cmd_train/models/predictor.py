"""The motion predictor: a Transformer from the clip's tokens to features of the motion to come.

Shape legend:
    B  clips of a batch
    S  source positions (tokens of the clip: time, rows, columns)
    P  target positions (rows and columns of the predicted motion)
    C  channels of a token
    D  width of the Transformer
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# As large as the tokens themselves. At 0.02, the habit of language models, attention starts uniform and every position
# predicts the same: the motion loss then stays at chance for hundreds of steps (measured on the demo's videos).
POSITION_INITIAL_STD = 1.0


class FeedForward(nn.Module):
    """Two linear layers with ReLU and dropout between them.

    Args:
        width: features read and written.
        hidden: features between.
        dropout: probability of dropping a hidden feature.
    """

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.expand = nn.Linear(width, hidden)
        self.dropout = nn.Dropout(dropout)
        self.contract = nn.Linear(hidden, width)

    def forward(self, state_BSD: Tensor) -> Tensor:
        """Maps (B, S, D) to (B, S, D)."""
        return self.contract(self.dropout(torch.relu(self.expand(state_BSD))))  # type: ignore[no-any-return] # modules give Any


class PositionedAttention(nn.Module):
    """Multi-head attention that adds positions to queries and keys but not to values, then adds and normalises.

    Args:
        width: features of every token.
        heads: attention heads.
        dropout: probability of dropping an attention weight and an output feature.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width)

    def forward(self, state_BPD: Tensor, position_PD: Tensor, source_BSD: Tensor, source_position_SD: Tensor) -> Tensor:
        """Lets a state (B, P, D) attend to a source (B, S, D), each with its learned positions; returns (B, P, D)."""
        attended_BPD, _ = self.attention(
            state_BPD + position_PD, source_BSD + source_position_SD, source_BSD, need_weights=False
        )
        return self.norm(state_BPD + self.dropout(attended_BPD))  # type: ignore[no-any-return] # modules give Any


class TransformerLayer(nn.Module):
    """One post-norm layer: self-attention, cross-attention if it is a decoder's, feed-forward.

    Args:
        width: features of every token.
        heads: attention heads.
        hidden: features inside the feed-forward part.
        dropout: probability for every dropout of the layer.
        crosses: whether the layer attends to a memory (decoder) or only to itself (encoder).
    """

    def __init__(self, *, width: int, heads: int, hidden: int, dropout: float, crosses: bool) -> None:
        super().__init__()
        self.self_attention = PositionedAttention(width, heads, dropout)
        self.cross_attention = PositionedAttention(width, heads, dropout) if crosses else None
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
        """Updates a state (B, P, D), reading a memory (B, S, D) if the layer crosses.

        Raises:
            ValueError: if a memory is missing or not wanted.
        """
        state_BPD = self.self_attention(state_BPD, position_PD, state_BPD, position_PD)
        if (self.cross_attention is None) != (memory_BSD is None):
            raise ValueError("memory_BSD must be given to a decoder's layer and to no other")
        if self.cross_attention is not None:
            state_BPD = self.cross_attention(state_BPD, position_PD, memory_BSD, memory_position_SD)
        return self.norm(state_BPD + self.dropout(self.feed_forward(state_BPD)))  # type: ignore[no-any-return] # modules give Any


class MotionPredictor(nn.Module):
    """Encodes the clip's tokens and decodes one feature for every position of the motion to come (the paper).

    Args:
        token_channels: channels C of a token.
        source_count: tokens S of a clip.
        target_count: positions P to predict.
        width: features D.
        heads: attention heads; must divide the width.
        hidden: features inside the feed-forward parts.
        encoder_layers: layers over the tokens.
        decoder_layers: layers over the predicted positions.
        dropout: probability for every dropout.
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

        def layers(count: int, *, crosses: bool) -> nn.ModuleList:
            return nn.ModuleList(
                TransformerLayer(width=width, heads=heads, hidden=hidden, dropout=dropout, crosses=crosses)
                for _ in range(count)
            )

        self.encoder = layers(encoder_layers, crosses=False)
        self.decoder = layers(decoder_layers, crosses=True)

    def forward(self, tokens_BCTHW: Tensor) -> Tensor:
        """Predicts motion features from a token map.

        Args:
            tokens_BCTHW: token map with T * H * W = S.

        Returns:
            Predicted features (B, P, D), before the head.

        Raises:
            ValueError: if the map does not hold S tokens.
        """
        memory_BSD = self.project(tokens_BCTHW.flatten(2).transpose(1, 2))
        source_count = len(self.source_position_SD)
        if memory_BSD.shape[1] != source_count:
            raise ValueError(
                f"tokens_BCTHW must hold {source_count} tokens a clip, not {memory_BSD.shape[1]} "
                f"(shape {tuple(tokens_BCTHW.shape)})"
            )
        for layer in self.encoder:
            memory_BSD = layer(memory_BSD, self.source_position_SD)
        state_BPD: Tensor = memory_BSD.new_zeros(len(memory_BSD), *self.target_position_PD.shape)
        for layer in self.decoder:
            state_BPD = layer(state_BPD, self.target_position_PD, memory_BSD, self.source_position_SD)
        return state_BPD
