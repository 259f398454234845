"""Embed video files or frames in memory with a trained backbone.

Shape legend: V videos, N clips of each, F features, T frames, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from fractions import Fraction
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from cmd_eval.features.embed import ClipNetwork, load_clip_network
from cmd_eval.features.readout import DIRECTION_FEATURES, READOUTS, ReadoutName
from cmd_eval.features.store import mean_over_clips
from cmd_extract.api.frames import iterate_videos
from cmd_extract.config import ExtractConfig
from cmd_extract.console.progress import ProgressDisplay
from cmd_extract.errors import VideoError
from cmd_extract.run.job import Limits
from cmd_extract.system.validation import require
from cmd_train.augment.apply import center_crop
from cmd_train.checkpoints.backbone import OpenedBackbone, open_backbone
from cmd_train.config import TrainConfig
from cmd_train.data.sampling import evaluation_clips

PathName = str | PathLike[str]
Progress = Callable[[int, int], None]
DEVICES = ("auto", "cpu", "cuda")
_CLIPS_PER_FORWARD = 16


class VideoModel:
    """A trained backbone that embeds videos; made by ``load_model``.

    Clips of a video are evenly spaced and cropped at the center, as in ``cmd-eval embed``.

    Attributes:
        config: training configuration of the network.
        extraction: how video files are decoded: with the settings of the shards that the network was trained on, or the
            default settings if they are not known.
    """

    config: TrainConfig
    extraction: ExtractConfig

    def __init__(self, opened: OpenedBackbone) -> None:
        self._opened = opened
        self.config = opened.config
        known = opened.extraction
        self.extraction = ExtractConfig() if known is None else ExtractConfig.from_description(known)
        self._networks: dict[str, ClipNetwork] = {}

    def embed(
        self,
        videos: PathName | Sequence[PathName],
        *,
        clips: int = 10,
        readout: ReadoutName = "mean",
        device: str = "auto",
        workers: int = 2,
        contained: bool = True,
        limits: Limits | None = None,
        on_error: Callable[[VideoError], None] | None = None,
        progress: bool | Progress = False,
    ) -> NDArray[np.float32]:
        """Embed video files.

        Args:
            videos: V video files, or one.
            clips: clips per video.
            readout: how the clips of a video become one feature, as in ``cmd-eval embed --readout``.
            device: ``auto`` (CUDA if available), ``cpu`` or ``cuda``.
            workers: number of videos to decode at a time.
            contained: decode in child processes, so that a crash, a hang or excessive memory use of a decoder is a
                ``VideoError`` instead of the end of this process.
            limits: time and memory limits per video.
            on_error: called with the error of each video that cannot be decoded, whose feature is NaN; None raises it.
            progress: show a progress bar on standard error, or a function called with (videos done, total videos).

        Returns:
            (V, F) float32.

        Raises:
            VideoError: a video cannot be decoded; the error has its path.
            ValueError: an argument is out of range, the network lacks what the readout needs, or its features are not
                finite.
        """
        paths = [videos] if isinstance(videos, str | PathLike) else list(videos)
        embedder = _Embedder(self._network(readout), self.config, clips, readout, device)
        features: list[NDArray[np.float32] | None] = []
        with ExitStack() as stack:
            if progress is True:
                progress = stack.enter_context(ProgressDisplay("embed")).update
            for item in iterate_videos(paths, self.extraction, workers=workers, contained=contained, limits=limits):
                if not isinstance(item, VideoError):
                    features.append(embedder(item.frame_count, item.read, str(item.path)))
                elif on_error is None:
                    raise item
                else:
                    on_error(item)
                    features.append(None)
                if progress:
                    progress(len(features), len(paths))
        missing = np.full(embedder.width, np.nan, np.float32)
        rows = [missing if feature is None else feature for feature in features]
        return np.stack(rows) if rows else np.empty((0, embedder.width), np.float32)

    def embed_array(
        self,
        frames_THWC_u8: NDArray[np.uint8],
        fps: float | None = None,
        *,
        clips: int = 10,
        readout: ReadoutName = "mean",
        device: str = "auto",
    ) -> NDArray[np.float32]:
        """Embed the decoded frames of one video.

        Frames are resized to the size of those in the shards that the network was trained on, unless they have it.

        Args:
            frames_THWC_u8: (T, H, W, 3) uint8, RGB.
            fps: their frame rate; required, and used, only if the network was trained on videos that were converted to
                a constant frame rate (``cmd-extract run --fps``).
            clips: clips per video.
            readout: as in ``embed``.
            device: as in ``embed``.

        Returns:
            (F,) float32.

        Raises:
            ValueError: an argument has another shape, type or value, or the features are not finite.
        """
        frames = np.asarray(frames_THWC_u8)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not frames.size:
            raise ValueError(f"frames_THWC_u8: must be (T, H, W, 3) uint8, got {frames.shape} {frames.dtype}")
        numbers = _resample(len(frames), fps, self.extraction.fps)
        embedder = _Embedder(self._network(readout), self.config, clips, readout, device)

        def read(wanted: Sequence[int]) -> NDArray[np.uint8]:
            resized = {n: _resize(frames[numbers[n]], self.extraction) for n in set(wanted)}
            return np.stack([resized[n] for n in wanted])

        return embedder(len(numbers), read, "frames_THWC_u8")

    def _network(self, readout: ReadoutName) -> ClipNetwork:
        require(readout in READOUTS, f"readout: must be one of {', '.join(READOUTS)}, got {readout!r}")
        features = READOUTS[readout].features
        if features not in self._networks:
            opened, network = self._opened, None
            if features != DIRECTION_FEATURES:
                network = ClipNetwork(opened.backbone, self.config.model, features)
            elif opened.checkpoint is None:
                raise ValueError(
                    f"readout: {readout!r} needs a network that predicts directions, not a published backbone"
                )
            else:
                network = load_clip_network(opened.checkpoint, self.config, features)
            self._networks[features] = network.eval()
        return self._networks[features]


class _Embedder:
    """Reads the clips of one video after the other and embeds them.

    Attributes:
        width: number of features F per video.
    """

    def __init__(
        self, network: ClipNetwork, config: TrainConfig, clips: int, readout: ReadoutName, device: str
    ) -> None:
        require(clips >= 1, f"clips: must be at least 1, got {clips}")
        require(device in DEVICES, f"device: must be one of {', '.join(DEVICES)}, got {device!r}")
        if device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device: no CUDA device is available; use 'auto' or 'cpu'")
        self._device = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
        self._network, self._config, self._clips = network.to(self._device), config, clips
        self._ordered = READOUTS[readout].ordered
        self.width = network.width * (clips if self._ordered else 1)

    def __call__(
        self, frame_count: int, read: Callable[[Sequence[int]], NDArray[np.uint8]], name: str
    ) -> NDArray[np.float32]:
        """Return the feature of a video, (F,) float32.

        Args:
            frame_count: number of its frames.
            read: returns some of them, (T, H, W, 3) uint8.
            name: for error messages.
        """
        clips = evaluation_clips(frame_count, self._config.sampling, self._clips)
        pictures = read([frame for clip in clips for frame in clip])
        clips_u8 = torch.from_numpy(pictures).reshape(self._clips, -1, *pictures.shape[1:])
        with torch.inference_mode():
            outputs = [
                self._network(center_crop(part.to(self._device), self._config.model.crop_size))
                for part in torch.split(clips_u8, _CLIPS_PER_FORWARD)
            ]
        feature_NF: NDArray[np.float32] = torch.cat(outputs).float().cpu().numpy()
        if not np.isfinite(feature_NF).all():
            raise ValueError(f"{name}: the network's features are not finite; use another checkpoint")
        return feature_NF.reshape(-1) if self._ordered else mean_over_clips(feature_NF)


def _resample(frames: int, fps: float | None, target: str | None) -> list[int]:
    """Return the frame to show at each tick of the target frame rate; all frames without one."""
    require(fps is None or fps > 0, f"fps: must be greater than 0, got {fps}")
    if target is None:
        return list(range(frames))
    if fps is None:
        raise ValueError(f"fps: required, since the network was trained on videos converted to {target} frames/s")
    step = fps / float(Fraction(target))
    return [min(round(number * step), frames - 1) for number in range(max(1, round(frames / step)))]


def _resize(frame: NDArray[np.uint8], config: ExtractConfig) -> NDArray[np.uint8]:
    """Resize a frame as extraction does: to the canonical size, then to that of the small frames."""
    width, height = config.frame_size
    if frame.shape[:2] == (height, width):
        return frame
    picture = Image.fromarray(frame)
    if picture.size != (config.width, config.height):
        picture = picture.resize((config.width, config.height), Image.Resampling.BICUBIC)
    return np.asarray(picture.resize((width, height), Image.Resampling.BOX))


def load_model(path: PathName) -> VideoModel:
    """Load a trained backbone to embed videos with.

    Args:
        path: a run folder (its last checkpoint), a checkpoint, a folder of ``cmd-train export``, or published weights.

    Raises:
        ValueError: the path is none of these, or the weights do not fit the network.
        OSError: a file cannot be read.
    """
    return VideoModel(open_backbone(Path(path)))
