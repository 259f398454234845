"""Run a network on whole videos: evenly spaced clips of each video, cropped at the center (the paper's protocol).

Shape legend: N clips of a video, B clips of a batch, F values per clip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
from torch import Tensor, nn

from cmd_extract.schema import VideoEntry
from cmd_extract.shard.reader import ShardSet
from cmd_extract.shard.videos import Videos
from cmd_train.augment.apply import center_crop
from cmd_train.config import DataConfig, TrainConfig
from cmd_train.data.batch import EvalSample
from cmd_train.data.dataset import EvalDataset
from cmd_train.data.loading import iterate_samples
from cmd_train.data.sampling import SamplingConfig

PREPROCESSING_VERSION = 1
"""Raised whenever the same checkpoint, shards and settings would give other features: clips, crop, normalization."""

Precision = Literal["float32", "bf16"]
_BATCH_CLIPS = {"cpu": 16, "cuda": 64}
"""Default batch size; larger batches are not faster on a CPU."""


@dataclass(frozen=True, kw_only=True)
class ClipProtocol:
    """How a network sees a video.

    Attributes:
        sampling: clip length and stride.
        crop_size: side of the input in pixels.
        clips: number N of evenly spaced clips per video.
        device: device to compute on.
        workers: number of decoding processes; 0 decodes in this process.
        precision: ``float32``, or ``bf16`` for mixed precision.
        batch_size: number B of clips per batch; None for 64 on a GPU and 16 on a CPU.
    """

    sampling: SamplingConfig
    crop_size: int
    clips: int
    device: torch.device
    workers: int = 0
    precision: Precision = "float32"
    batch_size: int | None = None

    @classmethod
    def of(
        cls,
        config: TrainConfig,
        *,
        clips: int,
        device: torch.device,
        workers: int = 0,
        precision: Precision = "float32",
        batch_size: int | None = None,
    ) -> ClipProtocol:
        """Return the protocol that matches a training configuration."""
        return cls(
            sampling=config.sampling,
            crop_size=config.model.crop_size,
            clips=clips,
            device=device,
            workers=workers,
            precision=precision,
            batch_size=batch_size,
        )

    @property
    def clips_per_batch(self) -> int:
        """Number B of clips per batch."""
        return self.batch_size or _BATCH_CLIPS[self.device.type]


def run_on_clips(
    network: nn.Module,
    forward: Callable[[Tensor], Tensor],
    shards: ShardSet,
    entries: Videos,
    protocol: ClipProtocol,
    *,
    first: int = 0,
    stop: int | None = None,
) -> Iterator[tuple[VideoEntry, Tensor]]:
    """Yield videos with the network's output for their clips, (N, F) on the CPU.

    Batches have a fixed number of clips, counted from the first one of ``entries``, whatever videos they come from. The
    output for a video therefore does not depend on where a run starts and stops, not even in the last digit.

    Args:
        network: moved to the device and set to evaluation mode.
        forward: calls the network with cropped clips (B, T, H, W, C) and returns (B, F).
        shards: the shards that contain the videos.
        entries: all videos.
        protocol: clips, crop, device and batch size.
        first, stop: range of the videos to yield; ``stop`` of None for the end.
    """
    stop = len(entries) if stop is None else stop
    if first >= stop:
        return
    clips, size = protocol.clips, protocol.clips_per_batch
    first_clip = first * clips // size * size  # of the batch that contains the first clip of the range
    last_batch = -(stop * clips // -size) * size
    read = range(first_clip // clips, min(-(last_batch // -clips), len(entries)))
    _prepare(network, protocol.device)
    samples = iterate_samples(
        EvalDataset(shards, entries.select(read), protocol.sampling, clips),
        workers=min(protocol.workers, len(read)),
        timeout_seconds=DataConfig.timeout_seconds,
        collate=_as_tensor,
        pin_memory=protocol.device.type == "cuda",
    )
    stored = (clips_u8.to(protocol.device, non_blocking=True) for clips_u8 in samples)
    batches = rebatch(_without_head(stored, first_clip - read.start * clips), size)
    outputs = _without_head(_outputs(forward, batches, protocol), first * clips - first_clip)
    yield from zip(entries[first:stop], islice(rebatch(outputs, clips), stop - first), strict=True)


def _prepare(network: nn.Module, device: torch.device) -> None:
    network.to(device).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload] # missing in torch's stubs
    network.eval()
    if device.type == "cuda":
        # All batches but the last have one shape.
        torch.backends.cudnn.benchmark = True


def _as_tensor(sample: EvalSample) -> Tensor:
    return torch.from_numpy(sample.clips_u8)


def _outputs(
    forward: Callable[[Tensor], Tensor], batches: Iterable[Tensor], protocol: ClipProtocol
) -> Iterator[Tensor]:
    """Yield the outputs of batches, one batch late: a GPU computes the next one while this one is copied and stored."""
    waiting: Tensor | None = None
    for clips_u8_BTHWC in batches:
        # No block around the loop: the consumer of this generator must not run in inference mode.
        with torch.inference_mode():
            clips_BCTHW = center_crop(clips_u8_BTHWC, protocol.crop_size)
            with torch.autocast(protocol.device.type, torch.bfloat16, enabled=protocol.precision == "bf16"):
                output_BF = forward(clips_BCTHW)
        if waiting is not None:
            yield waiting.float().cpu()
        waiting = output_BF
    if waiting is not None:
        yield waiting.float().cpu()


def _without_head(parts: Iterable[Tensor], rows: int) -> Iterator[Tensor]:
    """Yield tensors without their first ``rows`` rows, counted over all of them."""
    for part in parts:
        if len(part) > rows:
            yield part[rows:]
        rows = max(0, rows - len(part))


def rebatch(parts: Iterable[Tensor], rows: int) -> Iterator[Tensor]:
    """Yield the rows of tensors in tensors of ``rows`` rows; the last one may have fewer.

    Args:
        parts: tensors that agree in all dimensions but the first.
        rows: number of rows per result.
    """
    held: list[Tensor] = []
    count = 0
    for part in parts:
        held.append(part)
        count += len(part)
        while count >= rows:
            joined = held[0] if len(held) == 1 else torch.cat(held)
            yield joined[:rows]
            count -= rows
            held = [joined[rows:]] if count else []
    if count:
        yield torch.cat(held)
