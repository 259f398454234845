"""Evaluation of video backbones: retrieval, probes, recognition, search, reports.

Public names: `read_features` opens a features file (`Features`); `read_result` reads a result file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cmd_extract.system.lazy import lazy_attributes

if TYPE_CHECKING:
    from cmd_eval.features.store import Features, read_features
    from cmd_eval.results.schema import read_result

__all__ = ["Features", "read_features", "read_result"]

__getattr__, __dir__ = lazy_attributes(
    "cmd_eval",
    {
        **dict.fromkeys(("Features", "read_features"), "cmd_eval.features.store"),
        "read_result": "cmd_eval.results.schema",
    },
)
