"""Precision of a step: TF32 products and automatic mixed precision."""

from __future__ import annotations

import torch


def set_product_precision(precision: str) -> None:
    """Set TF32 for matrix products and convolutions; by default torch uses it for convolutions only."""
    allow = precision != "float32"
    torch.backends.cuda.matmul.allow_tf32 = allow
    torch.backends.cudnn.allow_tf32 = allow


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the context of the forward pass: mixed precision with ``bf16``, and with ``auto`` on GPUs that have it."""
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    enabled = precision == "bf16" or (precision == "auto" and has_bf16)
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)
