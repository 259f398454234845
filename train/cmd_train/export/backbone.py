"""Write a backbone and its model card to a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, get_args

from cmd_extract.system.files import remove, temporary_path
from cmd_extract.system.validation import require
from cmd_train.checkpoints.backbone import OpenedBackbone, open_backbone
from cmd_train.checkpoints.files import CONFIG_NAME, EXPORTED
from cmd_train.export.card import model_card
from cmd_train.export.formats import (
    EXPORT_FORMATS,
    FILE_NAMES,
    ExportFormat,
    check_format,
    write_onnx,
    write_safetensors,
    write_torchscript,
)
from cmd_train.export.torchvision_names import check_torchvision, torchvision_name

NameStyle = Literal["own", "torchvision"]
NAME_STYLES: tuple[NameStyle, ...] = get_args(NameStyle)
CARD_NAME = "README.md"


def export_backbone(
    source: Path,
    out: Path,
    *,
    form: ExportFormat = "safetensors",
    names: NameStyle = "own",
    license_name: str | None = None,
) -> Path:
    """Write a backbone to a new folder that a model hub can display: weights, ``config.json`` and a model card.

    A folder with the format ``safetensors`` and own names can be used wherever a checkpoint can.

    Args:
        source: a run folder (its last checkpoint), a checkpoint or published weights.
        out: the folder; it must not exist or be empty.
        form: format of the weights.
        names: parameter names: this project's, or those of torchvision's ``VideoResNet``.
        license_name: license of the weights, for the card.

    Returns:
        The weights file.

    Raises:
        ValueError: the source is no backbone, ``out`` contains files, torchvision cannot build the network, or a
            package is missing.
    """
    require(form in EXPORT_FORMATS, f"format: must be one of {', '.join(EXPORT_FORMATS)}, got {form!r}")
    require(names in NAME_STYLES, f"names: must be one of {', '.join(NAME_STYLES)}, got {names!r}")
    require(names == "own" or form == "safetensors", f"names: {names} is for the format safetensors, not {form}")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"{out}: already exists; choose another folder")
    check_format(form)
    opened = open_backbone(source)
    if names == "torchvision":
        check_torchvision(opened.config.model)
    folder = temporary_path(out)
    folder.mkdir(parents=True)
    try:
        _write(folder, opened, source, form, names, license_name)
        folder.replace(out)
    finally:
        remove(folder)
    return out / FILE_NAMES[form]


def _write(
    folder: Path,
    opened: OpenedBackbone,
    source: Path,
    form: ExportFormat,
    names: NameStyle,
    license_name: str | None,
) -> None:
    config, path = _exported_config(opened, names), folder / FILE_NAMES[form]
    if form == "safetensors":
        write_safetensors(path, opened, config, torchvision_name if names == "torchvision" else None)
    else:
        {"torchscript": write_torchscript, "onnx": write_onnx}[form](path, opened)
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", "utf-8")
    card = model_card(opened, source, form, torchvision=names == "torchvision", license_name=license_name)
    (folder / CARD_NAME).write_text(card, "utf-8")


def _exported_config(opened: OpenedBackbone, names: NameStyle) -> dict[str, Any]:
    """Return the configuration of the checkpoint with a record of the export, without folders of this machine."""
    checkpoint = opened.checkpoint
    stored: dict[str, Any] = {"settings": opened.config.as_dict(), "data_hash": None}
    exported: dict[str, Any] = {"names": names}
    if checkpoint is not None:
        stored |= _without_folders(checkpoint.config)
        exported |= {"step": checkpoint.step, "checkpoint_sha256": checkpoint.weights_hash}
        exported["metrics"] = checkpoint.load_state().get("recent_metrics", {})
    return stored | {EXPORTED: exported}


def _without_folders(value: Any) -> Any:
    """Reduce the paths of initial weights to file names."""
    if not isinstance(value, dict):
        return value
    return {
        key: Path(item).name if key == "source" and isinstance(item, str) else _without_folders(item)
        for key, item in value.items()
    }
