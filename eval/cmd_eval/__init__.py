"""Evaluation of video backbones: retrieval, probes, recognition, search, reports.

Public names; nothing else of the package is promised to stay:

- `load_model` loads the backbone of a run, a checkpoint, an exported folder or published weights (`VideoModel`); its
  methods `embed` and `embed_array` give the features of video files and of frames in memory.
- `read_features` opens a features file of `cmd-eval embed` (`Features`); `read_result` reads a result file.
- `FeatureError` is raised; `VideoError` of `cmd_extract` as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cmd_extract.system.lazy import lazy_attributes

if TYPE_CHECKING:
    from cmd_eval.api.model import VideoModel, load_model
    from cmd_eval.features.store import FeatureError, Features, read_features
    from cmd_eval.results.files import read_result

__all__ = ["FeatureError", "Features", "VideoModel", "load_model", "read_features", "read_result"]

__getattr__, __dir__ = lazy_attributes(
    "cmd_eval",
    {
        **dict.fromkeys(("FeatureError", "Features", "read_features"), "cmd_eval.features.store"),
        **dict.fromkeys(("VideoModel", "load_model"), "cmd_eval.api.model"),
        "read_result": "cmd_eval.results.files",
    },
)
