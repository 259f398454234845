from __future__ import annotations

import multiprocessing
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cmd_train.data import loading
from cmd_train.data.loading import DeviceCopier, iterate_samples
from tests.unit.cmd_train.augment.samples import random_batch


class Squares(Dataset[Tensor]):
    def __init__(self, hangs_at: int | None = None) -> None:
        self._hangs_at = hangs_at

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        if index == self._hangs_at:
            time.sleep(600)
        return torch.tensor([index**2])


def values(dataset: Dataset[Tensor], workers: int = 1, timeout_seconds: float = 60.0) -> list[int]:
    samples = iterate_samples(dataset, workers=workers, timeout_seconds=timeout_seconds)
    return [int(sample) for sample in samples]


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_come_in_order(workers: int) -> None:
    assert values(Squares(), workers) == [0, 1, 4, 9]


def test_a_worker_that_hangs_is_an_error_and_is_killed() -> None:
    start, others = time.monotonic(), set(multiprocessing.active_children())
    with pytest.raises(RuntimeError, match=r"no data from the 1 data workers within 2 s.*raise data.timeout_seconds"):
        values(Squares(hangs_at=2), timeout_seconds=2.0)
    for process in set(multiprocessing.active_children()) - others:
        process.join(30)
    assert not set(multiprocessing.active_children()) - others
    assert time.monotonic() - start < 60


UNFINISHED = """
from cmd_train.data.loading import iterate_samples
samples = iterate_samples([1, 2, 3, 4, 5, 6], workers=1, timeout_seconds=60)
next(samples)
"""


def test_a_process_ends_though_an_iteration_was_never_closed() -> None:
    subprocess.run([sys.executable, "-c", UNFINISHED], check=True, timeout=60)


def test_a_long_temporary_folder_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("d" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    assert values(Squares(), timeout_seconds=30.0) == [0, 1, 4, 9]
    # Without a folder for the socket the worker says so, instead of leaving the main process waiting.
    monkeypatch.setattr(loading, "_SHORT_FOLDERS", ())
    with pytest.raises(RuntimeError, match="is too long for a socket; set TMPDIR to a shorter path"):
        values(Squares(), timeout_seconds=30.0)


def test_batches_on_the_cpu_are_not_copied() -> None:
    batch = random_batch(2)
    same = DeviceCopier(torch.device("cpu"))(batch)
    assert same.keys == batch.keys
    assert same.clip_u8_BTHWC.data_ptr() == batch.clip_u8_BTHWC.data_ptr()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_copies_on_a_stream_of_their_own_are_complete_and_not_overwritten() -> None:
    device = torch.device("cuda")
    copier, weights = DeviceCopier(device), torch.rand(2048, 2048, device=device)
    batches = [random_batch(2) for _ in range(4)]
    expected, sums = [], []
    for number, batch in enumerate(batches):
        pinned = replace(batch, clip_u8_BTHWC=(batch.clip_u8_BTHWC + number).pin_memory())
        expected.append(pinned.clip_u8_BTHWC.sum().item())
        copy = copier(pinned)
        for _ in range(50):  # keeps the device busy while the next batch is copied
            weights = weights @ weights / weights.norm()
        sums.append(copy.clip_u8_BTHWC.sum() + 0 * weights.sum().long())
        del copy
    assert [value.item() for value in sums] == expected
