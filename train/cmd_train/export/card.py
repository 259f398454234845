"""Model card of an exported backbone: a README.md in the form that model hubs display."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from cmd_train.augment.color import IMAGENET_MEAN, IMAGENET_STD
from cmd_train.checkpoints.backbone import OpenedBackbone
from cmd_train.checkpoints.files import FOLDER_NAME
from cmd_train.export.formats import FILE_NAMES, INPUT_NAME, OUTPUT_NAMES, ExportFormat
from cmd_train.export.torchvision_names import USAGE

_PAPER = "https://arxiv.org/abs/2104.00862"
_NORMALIZATION = f"RGB divided by 255, minus the mean {IMAGENET_MEAN}, divided by {IMAGENET_STD}"


def model_card(
    opened: OpenedBackbone, source: Path, form: ExportFormat, *, torchvision: bool, license_name: str | None
) -> str:
    """Return the text of the model card.

    Args:
        opened: the backbone.
        source: where it came from.
        form: format of the exported file.
        torchvision: whether it has torchvision's names.
        license_name: license of the weights; None if the user stated none.
    """
    header = {"library_name": "context-motion-decoupling", "tags": ["video", "self-supervised", "compressed-video"]}
    header |= {"license": license_name} if license_name else {}
    model = opened.config.model
    sections = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---",
        f"# {model.backbone} video backbone",
        f"Trained with context-motion-decoupling, which follows [context and motion decoupling]({_PAPER}).",
        "## Use",
        USAGE if torchvision else _usage(opened, form),
        "## Training",
        "\n".join(f"- {name}: {value}" for name, value in _facts(opened)),
        "## Figures",
        "\n".join(_figures(opened, source)),
        "## License",
        license_name or "Not stated. The license of the weights also depends on that of the training videos.",
    ]
    return "\n\n".join(sections) + "\n"


def _usage(opened: OpenedBackbone, form: ExportFormat) -> str:
    model, name = opened.config.model, FILE_NAMES[form]
    shape = f"(B, 3, {model.clip_frames}, {model.crop_size}, {model.crop_size})"
    about = f"Input: clips {shape}, one frame in {opened.config.sampling.stride}, {_NORMALIZATION}."
    if form == "safetensors":
        lines = ["import cmd_eval, cmd_train", "", 'model = cmd_eval.load_model("FOLDER")', 'model.embed(["a.mp4"])']
        lines += ['backbone = cmd_train.load_backbone("FOLDER")  # torch.nn.Module']
    elif form == "torchscript":
        lines = [
            "import torch",
            "",
            f'backbone = torch.jit.load("{name}")',
            f"{', '.join(OUTPUT_NAMES)} = backbone(clip)",
        ]
    else:
        lines = ["import onnxruntime", "", f'session = onnxruntime.InferenceSession("{name}")']
        lines += [f'{", ".join(OUTPUT_NAMES)} = session.run(None, {{"{INPUT_NAME}": clip}})']
    return "\n".join(["```python", *lines, "```", "", about])


def _facts(opened: OpenedBackbone) -> Iterator[tuple[str, str]]:
    """Yield names and values of what is known of the training."""
    config, checkpoint = opened.config, opened.checkpoint
    if checkpoint is None:
        yield "weights", "published by others; this file contains them unchanged"
        return
    stored = checkpoint.config
    if "imported" in stored:
        yield "weights", f"imported from a file with SHA-256 {stored['imported']['sha256']}"
        return
    data = config.data
    yield "recipe", str(stored.get("recipe") or "not recorded")
    yield "task", "fine-tuning with labels" if "classes" in stored else "pre-training without labels"
    yield "steps", f"{checkpoint.step}, batch size {config.optim.batch_size}, {config.optim.epochs} epochs configured"
    yield "random seed", str(config.run.seed)
    part = "all videos" if data.all_videos else f"part {data.train_part} of {data.split_column}"
    yield "data", f"{part} of the shards with data hash {stored.get('data_hash')}"
    extraction = stored.get("extraction")
    if extraction:
        size = f"{extraction['width']}x{extraction['height']}"
        yield "extraction", f"{size}, {extraction['codec']}, GOP {extraction['gop']}, {extraction['ffmpeg']}"
    initial = stored.get("init")
    yield "initial weights", f"SHA-256 {initial['sha256']}, part {initial['part']}" if initial else "random"
    yield "all settings", "`config.json`"


def _figures(opened: OpenedBackbone, source: Path) -> list[str]:
    """Return lines with the results of ``cmd-eval`` for exactly these weights."""
    checkpoint = opened.checkpoint
    rows: list[str] = []
    if checkpoint is not None:
        folder = checkpoint.path.parent.parent if checkpoint.path.parent.name == FOLDER_NAME else checkpoint.path
        for path in sorted((folder / "eval").glob("*.json")):
            rows += _rows(path, checkpoint.weights_hash)
    if not rows:
        return [f"No results of `cmd-eval` for these weights were found beside {source.name}."]
    return ["| task | features | split | measure | % | chance |", "|---|---|---|---|---|---|", *rows]


def _rows(path: Path, weights_hash: str) -> Iterator[str]:
    try:
        record = json.loads(path.read_text("utf-8"))
        provenance = record["provenance"]
        if provenance["checkpoint_sha256"] != weights_hash or provenance["untrained"]:
            return
        task = ", ".join(filter(None, (record["kind"], record.get("method"))))
        for split in record["splits"]:
            name = f"{split.get('split_column') or 'leave-one-out'}, {split.get('target', 'label')}"
            if split.get("exclude_same"):
                name += f", without the same {split['exclude_same']}"
            for measure, value, chance in _measures(split):
                yield f"| {task} | {_features(provenance)} | {name} | {measure} | {_percent(value)} | {chance} |"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return  # not a result with splits


def _features(provenance: Mapping[str, Any]) -> str:
    """Return how the features of a result were computed."""
    clips = provenance.get("clips")
    parts = [f"readout {provenance.get('readout', 'mean')}"]
    parts += [] if clips is None else [f"{clips} clip{'s' if clips > 1 else ''}"]
    parts += [provenance.get("precision", "float32"), *(["standardized"] if provenance.get("standardized") else [])]
    return ", ".join(parts)


def _measures(split: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, float], str]]:
    if "recall" in split:
        for rank, value in split["recall"].items():
            yield rank, value, _chance(split["chance"][rank])
    else:
        yield "top-1", split["top1"], _chance(split["chance"])


def _chance(share: float | None) -> str:
    return "\N{EN DASH}" if share is None else f"{100 * share:.1f}"


def _percent(value: Mapping[str, float]) -> str:
    return f"{100 * value['value']:.1f} ({100 * value['low']:.1f} to {100 * value['high']:.1f})"
