"""Load the authors' published weights: read a weights file and map its names to the networks of this project."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cmd_train.models.backbones import Backbone
from cmd_train.models.pretrain import PretrainModel

# Substitutions that turn our names into the published ones; all of them are applied, in this order.
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
_BACKBONE_PREFIXES = (PUBLISHED_BACKBONE, "encoder_q.", "backbone.")
"""Prefixes of the backbone in the authors' files, in files of MoCo, and in files of MMAction2."""
_HEADS = ("fc", "head", "cls_head", "classifier")
_WRAPPER_KEYS = ("state_dict", "model", "model_state_dict", "net")


def _publish_convolution(match: re.Match[str]) -> str:
    """Return the published name of a convolution or BatchNorm: units count from 1; the suffix is `_s` or `_t`."""
    number = int(match["unit"]) + 1 if match["unit"] else 1
    factor = f"_{match['factor'][0]}" if match["factor"] else ""
    return f"{'conv' if match['part'] == 'conv' else 'bn'}{number}{factor}."


def published_name(name: str) -> str:
    """Return the published name of a parameter or buffer.

    Args:
        name: key of the state dict of a `PretrainModel` or a `Backbone`.
    """
    # The rules of the Transformer match names that the ResNets do not have; those of the stages come last.
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
    """Strip leading name components, such as `module.`, that all names share."""
    named = dict(state)
    while named:
        heads = {name.partition(".")[0] for name in named}
        if len(heads) != 1 or any("." not in name for name in named):
            break
        if f"{next(iter(heads))}." == PUBLISHED_BACKBONE:
            break
        named = {name.partition(".")[2]: tensor for name, tensor in named.items()}
    return named


def backbone_part(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the backbone in a file of weights, without prefix, heads and other networks."""
    given = without_wrappers(state)
    prefix = next((p for p in _BACKBONE_PREFIXES if any(name.startswith(p) for name in given)), "")
    part = {name.removeprefix(prefix): tensor for name, tensor in given.items() if name.startswith(prefix)}
    return {name: tensor for name, tensor in part.items() if name.partition(".")[0] not in _HEADS}


def load_published(model: PretrainModel | Backbone, state: Mapping[str, Tensor]) -> None:
    """Load published weights into a model, all of them or none.

    A `PretrainModel` (with both heads and `motion_input="paper"`, as published) loads a complete pre-training
    checkpoint; a `Backbone` loads backbone weights, alone or from a larger file, see `backbone_part`. Names may have
    any common prefix, such as `module.`.

    Args:
        model: network to fill, in place.
        state: tensors by published name.

    Raises:
        ValueError: names are missing or unexpected, or shapes differ; the message lists them, and the model stays
            unchanged.
    """
    given = backbone_part(state) if isinstance(model, Backbone) else without_wrappers(state)
    # The published heads are convolutions with kernel size 1; ours are linear layers.
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
    """Copy tensors into a model by name, all of them or none.

    Args:
        model: network to fill, in place.
        given: tensors by name.
        name_of: function from the model's own names to the names in `given`.

    Raises:
        ValueError: names are missing or unexpected, or shapes differ; the message lists them, and the model stays
            unchanged.
    """
    own = model.state_dict()
    theirs = {name: name_of(name) for name in own}
    problems = []
    if missing := sorted(set(theirs.values()) - set(given)):
        problems.append(f"missing: {', '.join(missing)}")
    if unexpected := sorted(set(given) - set(theirs.values())):
        problems.append(f"unexpected: {', '.join(unexpected)}")
    found = {name: given[other] for name, other in theirs.items() if other in given}
    misshapen = [
        f"{theirs[name]} {tuple(tensor.shape)} instead of {tuple(own[name].shape)}"
        for name, tensor in found.items()
        if tensor.shape != own[name].shape
    ]
    if misshapen:
        problems.append(f"different shape: {', '.join(misshapen)}")
    if problems:
        raise ValueError("the weights do not fit the network; " + "; ".join(problems))
    model.load_state_dict(found)


def load_submodule(module: nn.Module, weights: Mapping[str, Tensor], prefix: str) -> None:
    """Load one submodule from the weights of a checkpoint of this project.

    Args:
        module: network to fill, in place.
        weights: tensors of the whole network by name.
        prefix: name of the submodule followed by a dot, such as `backbone.`; other tensors are ignored.

    Raises:
        ValueError: as in `load_named`.
    """
    load_named(module, {name.removeprefix(prefix): t for name, t in weights.items() if name.startswith(prefix)})


def read_weights_file(path: Path) -> dict[str, Tensor]:
    """Read the tensors in a `.safetensors` or PyTorch file, without running any code in it.

    A PyTorch file may wrap its tensors in a dictionary under one of "state_dict", "model", "model_state_dict", "net".

    Args:
        path: weights file; any suffix but `.safetensors` stands for a PyTorch file.

    Raises:
        ValueError: the file does not contain named tensors, or also other objects, whose loading could run code.
        OSError: the file cannot be read.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError) as error:
        raise ValueError(_unreadable(path, error)) from error
    for key in _WRAPPER_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{path}: must contain named tensors, contains {type(content).__name__}")
    others = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise ValueError(f"{path}: must contain named tensors only, also contains {', '.join(others)}")
    return dict(content)


def _unreadable(path: Path, error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError) and (objects := _foreign_objects(path)):
        convert = (
            f"import torch; torch.save(torch.load({path.name!r}, weights_only=False)['state_dict'], 'weights.pth')"
        )
        return (
            f"{path}: contains objects other than tensors ({', '.join(objects)}), which are not loaded because that "
            f'can run code. If you trust its source, save the tensors alone: python -c "{convert}"'
        )
    # torch appends advice to disable the protection.
    reason = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
    return f"{path}: not a readable .pth or .safetensors file of weights ({reason})"


def _foreign_objects(path: Path) -> list[str]:
    """Return the names of the classes and functions in a PyTorch file that are not loaded; empty if unknown."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except (RuntimeError, ValueError):  # the format before PyTorch 1.6, or no file of PyTorch at all
        return []
