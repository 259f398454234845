"""Finds the video that kills whole workers: who extracts notes which video comes next, before it is touched."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from cmd_extract.config import ExtractConfig
from cmd_extract.decode.ffmpeg import FfmpegBinary
from cmd_extract.decode.video import ExtractedVideo
from cmd_extract.errors import VideoError
from cmd_extract.run.containment import Extract

_LEAST_DEATHS = 2


@dataclass(frozen=True, kw_only=True)
class WatchedExtract:
    """An ``Extract`` that notes and refuses videos; can be pickled.

    Attributes:
        extract: what extracts one video.
        notes: file that all workers see; one line a video that was begun.
        blamed: sources that are known to kill workers.
    """

    extract: Extract
    notes: Path
    blamed: frozenset[Path] = frozenset()

    def __call__(self, source: Path, config: ExtractConfig, workdir: Path, binary: FfmpegBinary) -> ExtractedVideo:
        """Extracts one video.

        Raises:
            VideoError: as ``extract``; with stage ``crash`` for what is blamed.
        """
        if source in self.blamed:
            raise VideoError("crash", "every worker that extracted it died")
        attempt = workdir.parents[1].name  # the scratch folder, another one for each worker's turn
        with self.notes.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps([attempt, str(source)]) + "\n")
        return self.extract(source, config, workdir, binary)

    def culprit(self) -> Path | None:
        """The source that was under way when each of several workers died; None if they died of different ones."""
        if not self.notes.exists():
            return None
        lines = self.notes.read_text("utf-8").splitlines(keepends=True)
        last = dict(json.loads(line) for line in lines if line.endswith("\n"))
        if len(last) < _LEAST_DEATHS or len(set(last.values())) > 1:
            return None
        return Path(next(iter(last.values())))
