"""Loads the authors' published checkpoints: reads a weights file and maps its names onto this project's networks."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from cmd_train.models.backbones import Backbone
from cmd_train.models.pretrain import PretrainModel

# Rewrites from our names to the published ones, applied in turn; a name may be rewritten by several.
_PRETRAIN_RULES = (
    (r"^backbone\.", "rgb_backbone."),
    (r"^motion\.encoder\.", "m_backbone."),
    (r"^context_encoder\.", "i_backbone."),
    (r"^motion\.query_head\.layers\.", "mq_head."),
    (r"^motion\.key_head\.layers\.", "mk_head."),
    (r"^context_query_head\.layers\.", "iq_head."),
    (r"^context_key_head\.layers\.", "ik_head."),
    (r"^motion\.predictor\.project\.", "fc."),
    (r"^motion\.predictor\.source_position_SD$", "k_embedding.weight"),
    (r"^motion\.predictor\.target_position_PD$", "q_embedding.weight"),
    (r"^motion\.predictor\.(encoder|decoder)\.", r"transformer.\1.layers."),
    (r"\.self_attention\.attention\.", ".self_attn."),
    (r"\.self_attention\.norm\.", ".norm1."),
    (r"\.cross_attention\.attention\.", ".cross_attn."),
    (r"\.cross_attention\.norm\.", ".norm2."),
    (r"(\.encoder\.layers\.\d+)\.norm\.", r"\1.norm2."),
    (r"(\.decoder\.layers\.\d+)\.norm\.", r"\1.norm3."),
    (r"\.feed_forward\.expand\.", ".fc1."),
    (r"\.feed_forward\.contract\.", ".fc2."),
)
PUBLISHED_BACKBONE = "rgb_backbone."
_WRAPPER_KEYS = ("state_dict", "model")
_QUEUE = "context_queue."


def _publish_convolution(match: re.Match[str]) -> str:
    """Names one convolution or BatchNorm as published: units count from 1, factor `_s` or `_t` behind."""
    number = int(match["unit"]) + 1 if match["unit"] else 1
    factor = f"_{match['factor'][0]}" if match["factor"] else ""
    return f"{'conv' if match['part'] == 'conv' else 'bn'}{number}{factor}."


def published_name(name: str) -> str:
    """Returns the name that the authors' checkpoints give to one of our parameters or buffers.

    Args:
        name: a key of the `state_dict()` of a `PretrainModel` or of a `Backbone`.
    """
    # The Transformer's rules are told from the ResNets' by their own words; the stages' come last.
    for pattern, replacement in _PRETRAIN_RULES:
        name = re.sub(pattern, replacement, name)
    name = re.sub(r"\btrunk\.", "", name)
    name = re.sub(r"\bstages\.(\d+)\.", lambda match: f"layer{int(match[1]) + 1}.", name)
    name = re.sub(r"\bshortcut\.conv\.", "downsample.0.", name)
    name = re.sub(r"\bshortcut\.norm\.", "downsample.1.", name)
    name = re.sub(
        r"\b(?:stem|units\.(?P<unit>\d+))\.(?:(?P<factor>spatial|temporal)\.)?(?P<part>conv|norm)\.",
        _publish_convolution,
        name,
    )
    name = re.sub(r"\blayers\.(\d[ab]?)\.conv\.", r"conv\1.", name)  # C3D
    return re.sub(r"\blayers\.(\d[ab]?)\.norm\.", r"bn\1.", name)


def without_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drops leading name components (`module.` and the like) as long as all names share them."""
    named = dict(state)
    while named:
        heads = {name.partition(".")[0] for name in named}
        if len(heads) != 1 or any("." not in name for name in named):
            break
        if f"{next(iter(heads))}." == PUBLISHED_BACKBONE:
            break
        named = {name.partition(".")[2]: tensor for name, tensor in named.items()}
    return named


def _listed(title: str, names: list[str]) -> str:
    return f"{title}: {', '.join(names)}"


def load_published(model: PretrainModel | Backbone, state: Mapping[str, Tensor]) -> None:
    """Copies a published checkpoint into a model, all of it or nothing.

    A `PretrainModel` (with both heads and `motion_input="paper"`, as published) takes a whole pre-training
    checkpoint; a `Backbone` takes a backbone's, or the backbone's part of a whole one. Names may carry any common
    prefix, such as `module.`.

    Args:
        model: the network to fill, in place.
        state: published names and tensors.

    Raises:
        ValueError: if names are missing or unexpected or shapes differ; the message lists them, and the model is
            left as it was.
    """
    given = without_wrappers(state)
    if isinstance(model, Backbone) and any(name.startswith(PUBLISHED_BACKBONE) for name in given):
        given = {
            name.removeprefix(PUBLISHED_BACKBONE): tensor
            for name, tensor in given.items()
            if name.startswith(PUBLISHED_BACKBONE)
        }
    # Published heads are convolutions over one position, ours linear layers.
    flat = {
        name: tensor[:, :, 0]
        if name.partition(".")[0].endswith("_head") and tensor.ndim == 3 and tensor.shape[2] == 1
        else tensor
        for name, tensor in given.items()
    }
    load_named(model, flat, published_name)


def load_named(
    model: nn.Module, given: Mapping[str, Tensor], name_of: Callable[[str], str] = lambda name: name
) -> None:
    """Copies tensors into a model by name, all of them or none; a queue of keys starts empty.

    Args:
        model: the network to fill, in place.
        given: tensors by name.
        name_of: the name in ``given`` of one of the model's own parameters or buffers.

    Raises:
        ValueError: if names are missing or unexpected or shapes differ; the message lists them, and the model is
            left as it was.
    """
    # The queue holds what other weights have made of other data.
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(_QUEUE)}
    given = {name: tensor for name, tensor in given.items() if not name.startswith(_QUEUE)}
    theirs = {name: name_of(name) for name in own}
    problems = []
    if missing := sorted(set(theirs.values()) - set(given)):
        problems.append(_listed("missing", missing))
    if unexpected := sorted(set(given) - set(theirs.values())):
        problems.append(_listed("unexpected", unexpected))
    found = {name: given[other] for name, other in theirs.items() if other in given}
    misshapen = [
        f"{theirs[name]} {tuple(tensor.shape)} instead of {tuple(own[name].shape)}"
        for name, tensor in found.items()
        if tensor.shape != own[name].shape
    ]
    if misshapen:
        problems.append(_listed("of another shape", misshapen))
    if problems:
        raise ValueError("the checkpoint does not fit the model; " + "; ".join(problems))
    model.load_state_dict(found, strict=False)
    if isinstance(model, PretrainModel):
        model.restart_queue()


def read_weights_file(path: Path | str) -> dict[str, Tensor]:
    """Reads the tensors of a `.safetensors` or PyTorch weights file, without running any code in it.

    A PyTorch file may wrap its tensors in a dictionary under "state_dict" or "model".

    Args:
        path: the file; any suffix but `.safetensors` is taken for a PyTorch file.

    Raises:
        ValueError: if the file does not hold named tensors.
        FileNotFoundError: if there is no such file.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return load_file(path)
    content = torch.load(path, map_location="cpu", weights_only=True)
    for key in _WRAPPER_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"path must hold named tensors, not {type(content).__name__}: {path}")
    strangers = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if strangers:
        raise ValueError(f"path must hold tensors only; {_listed('others', strangers)}: {path}")
    return dict(content)
