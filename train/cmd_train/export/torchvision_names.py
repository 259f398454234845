"""Parameter names of torchvision's ``VideoResNet``, for the networks that it can build."""

from __future__ import annotations

import re

from cmd_train.models.config import ModelConfig

_TORCHVISION_WIDTH = 64
_RULES = (
    (r"^trunk\.stem\.conv\.", "stem.0."),
    (r"^trunk\.stem\.norm\.", "stem.1."),
    (r"^trunk\.stages\.(\d+)\.(\d+)\.", lambda match: f"layer{int(match[1]) + 1}.{match[2]}."),
    (r"\.units\.(\d+)\.conv\.", lambda match: f".conv{int(match[1]) + 1}.0."),
    (r"\.units\.(\d+)\.norm\.", lambda match: f".conv{int(match[1]) + 1}.1."),
    (r"\.shortcut\.conv\.", ".downsample.0."),
    (r"\.shortcut\.norm\.", ".downsample.1."),
)

USAGE = """```python
from safetensors.torch import load_file
from torch import nn
from torchvision.models.video.resnet import BasicStem, Bottleneck, Conv3DSimple, VideoResNet

class PooledStem(BasicStem):  # torchvision's networks have no max pooling after the stem, this one has
    def __init__(self):
        super().__init__()
        self.append(nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)))

model = VideoResNet(Bottleneck, [Conv3DSimple] * 4, [2, 2, 2, 2], PooledStem)
model.fc = nn.Identity()
model.load_state_dict(load_file("model.safetensors"))  # maps clips (B, 3, T, H, W) to pooled features (B, 2048)
```"""
"""How to load the exported file, as Markdown."""


def check_torchvision(config: ModelConfig) -> None:
    """Check that torchvision can build a network, up to max pooling, which has no parameters.

    Raises:
        ValueError: it cannot; the message says why.
    """
    reason = None
    if config.backbone == "c3d":
        reason = "torchvision has no C3D"
    elif config.backbone != "r3d_26":
        reason = "torchvision's R(2+1)D has other channels between the spatial and the temporal convolutions"
    elif config.shortcut != "strided":
        reason = f"torchvision has strided shortcuts only, and this network {config.shortcut} ones"
    elif config.width != _TORCHVISION_WIDTH:
        reason = f"torchvision's first stage has {_TORCHVISION_WIDTH} channels, that of this network {config.width}"
    if reason:
        raise ValueError(
            f"names: torchvision cannot build this {config.backbone}: {reason}; export it with --names own"
        )


def torchvision_name(name: str) -> str:
    """Return torchvision's name of a parameter or buffer of an ``r3d_26`` backbone."""
    for pattern, replacement in _RULES:
        name = re.sub(pattern, replacement, name)
    return name
