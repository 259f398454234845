"""File formats of an exported backbone."""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cmd_train.checkpoints.backbone import OpenedBackbone
from cmd_train.checkpoints.files import NAME_PREFIX, WEIGHTS_NAME
from cmd_train.checkpoints.initial import BACKBONE_PREFIX
from cmd_train.models.backbones import Backbone, BackboneOutput

ExportFormat = Literal["safetensors", "torchscript", "onnx"]
EXPORT_FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)
FILE_NAMES: Mapping[ExportFormat, str] = {
    "safetensors": WEIGHTS_NAME,
    "torchscript": "model.pt",
    "onnx": "model.onnx",
}
INPUT_NAME = "clip"
OUTPUT_NAMES = ("pooled", "feature", "tokens")
_EXAMPLE_BATCH = 2


class _TensorOutputs(nn.Module):
    """A backbone that returns a tuple of tensors instead of a ``BackboneOutput``."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, clip_BCTHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map clips (B, 3, T, H, W) to the pooled features, the feature map and the token map."""
        output: BackboneOutput = self.backbone(clip_BCTHW)
        return output.pooled_BC, output.feature_BCTHW, output.tokens_BCTHW


def check_format(name: ExportFormat) -> None:
    """Check that the packages that a format needs are installed.

    Raises:
        ValueError: a package is missing.
    """
    if name == "onnx" and not (importlib.util.find_spec("onnx") and importlib.util.find_spec("onnxscript")):
        raise ValueError("format: onnx needs the packages onnx and onnxscript; run `pip install '.[onnx]'`")


def write_safetensors(
    path: Path, opened: OpenedBackbone, config: Mapping[str, Any], name_of: Callable[[str], str] | None
) -> None:
    """Write a state dict with plain names.

    Args:
        path: the file.
        opened: the backbone.
        config: stored in the metadata, so that the file alone can be read back.
        name_of: maps a name to that of another library, which makes the file its own; None keeps the names.
    """
    metadata = {"format": "pt"}
    if name_of is None:
        step = opened.checkpoint.step if opened.checkpoint else 0
        metadata |= {"config": json.dumps(config, sort_keys=True), "step": str(step), NAME_PREFIX: BACKBONE_PREFIX}
    tensors = {(name_of or str)(name): value.contiguous() for name, value in opened.backbone.state_dict().items()}
    save_file(tensors, path, metadata)
    path.chmod(0o644)  # safetensors creates files that only their owner can read, whatever the umask


def write_torchscript(path: Path, opened: OpenedBackbone) -> None:
    """Write a traced module that maps clips of the configured size, in batches of any size, to ``OUTPUT_NAMES``."""
    with _quiet(), torch.inference_mode():
        torch.jit.trace(_TensorOutputs(opened.backbone).eval(), _example(opened)).save(str(path))  # type: ignore[no-untyped-call] # untyped in torch


def write_onnx(path: Path, opened: OpenedBackbone) -> None:
    """Write an ONNX model with the input ``INPUT_NAME`` and the outputs ``OUTPUT_NAMES``; batches have any size."""
    with _quiet():
        torch.onnx.export(
            _TensorOutputs(opened.backbone).eval(),
            (_example(opened),),
            path,
            input_names=[INPUT_NAME],
            output_names=list(OUTPUT_NAMES),
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def _example(opened: OpenedBackbone) -> Tensor:
    model = opened.config.model
    return torch.zeros(_EXAMPLE_BATCH, 3, model.clip_frames, model.crop_size, model.crop_size)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence notes of the exporters: on checks of shapes, which are constant, and on packages that are not needed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
