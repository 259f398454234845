"""Load samples in worker processes, without waiting forever for a worker that hangs; copy batches to the device."""

from __future__ import annotations

import multiprocessing
import multiprocessing.util
import os
import signal
import tempfile
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from cmd_train.data.batch import Batch

_SOCKET_PATH_BYTES = 107
_SOCKET_NAME_BYTES = len("/listener-12345678")
_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


def iterate_samples(
    dataset: Dataset[Any],
    *,
    workers: int,
    timeout_seconds: float,
    sampler: Sampler[Any] | None = None,
    collate: Callable[[Any], Any] | None = None,
    pin_memory: bool = False,
) -> Iterator[Any]:
    """Iterate over the samples of a dataset, each loaded by one of several processes, in order.

    Args:
        dataset: dataset with a length, or whose indices come from ``sampler``.
        workers: number of processes; 0 loads in this process.
        timeout_seconds: longest wait for the next sample.
        sampler: indices into the dataset; None for 0, 1, ...
        collate: converts a sample in the worker.
        pin_memory: copy tensors to page-locked memory.

    Raises:
        RuntimeError: no sample arrived in time, or a worker failed or was killed; all workers have been killed.
    """
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        timeout=timeout_seconds if workers else 0,
        worker_init_fn=_prepare_worker,
    )
    others = set(multiprocessing.active_children())
    iterator = iter(loader)
    own = set(multiprocessing.active_children()) - others
    # At exit, for an iteration that nobody has closed: the traceback of an error may keep it.
    end_at_exit = Finalize(None, _end, args=(iterator, own), exitpriority=1)
    try:
        yield from iterator
    except GeneratorExit:
        raise
    except BaseException as error:
        _end(iterator, own)
        if isinstance(error, RuntimeError) and "timed out" in str(error):
            raise RuntimeError(
                f"no data from the {workers} data workers within {timeout_seconds:g} s: the storage does not answer, "
                "or a worker failed (see its output above); for slow storage, raise data.timeout_seconds in training, "
                "or use --workers 0"
            ) from error
        raise
    finally:
        end_at_exit.cancel()


class DeviceCopier:
    """Copies batches to the training device; on CUDA, on a stream of its own.

    The computation of a step is queued on the device long before it is done. The copy of the next batch, from
    page-locked memory, therefore runs at the same time.

    Args:
        device: training device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call] # untyped in torch

    def __call__(self, batch: Batch) -> Batch:
        """Return a batch on the device; what is queued on the current stream from now on waits for the copy."""
        if self._stream is None:
            return batch.to(self._device)
        with torch.cuda.stream(self._stream):
            copy = batch.to(self._device, non_blocking=True)
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        # Otherwise the memory could be reused for the next copy while this stream still reads it.
        copy.record_stream(current)
        return copy


def _end(iterator: Any, workers: Iterable[BaseProcess]) -> None:
    """End workers, of which some may hang.

    They ignore the SIGTERM by which multiprocessing ends its children at exit, and would then be waited for.
    """
    if isinstance(iterator, _MultiProcessingDataLoaderIter):
        # There is no public function. Before this, torch would report the end of each worker as an error.
        iterator._shutdown_workers()
    for process in workers:
        process.kill()


def _prepare_worker(_: int) -> None:
    """Ignore stop signals, and make room for the socket by which tensors are sent to the main process.

    Raises:
        RuntimeError: there is no folder whose path is short enough for a socket.
    """
    ignore_signals()
    if _has_room(tempfile.gettempdir()):
        return
    for folder in _SHORT_FOLDERS:
        if os.access(folder, os.W_OK | os.X_OK):
            # multiprocessing creates its folder for sockets here, and removes it in the end.
            tempfile.tempdir = folder
            if _has_room(multiprocessing.util.get_temp_dir()):
                return
    raise RuntimeError(f"TMPDIR: {tempfile.gettempdir()} is too long for a socket; set TMPDIR to a shorter path")


def ignore_signals() -> None:
    """Ignore stop signals in a data worker.

    Batch systems signal the whole process group, and the main process still needs its workers to finish the step.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _has_room(folder: str) -> bool:
    """Return whether a socket of multiprocessing fits into a folder, inside a folder of its own."""
    return len(os.fsencode(folder)) + len("/pymp-12345678") + _SOCKET_NAME_BYTES <= _SOCKET_PATH_BYTES
