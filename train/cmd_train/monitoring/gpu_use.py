"""How busy a GPU is, as its driver says; the extra ``gpu`` brings what asks the driver."""

from __future__ import annotations

from collections.abc import Callable

import torch


class GpuUse:
    """Asks now and then how busy a training's GPU is; beside the wait for data it tells what holds a training up.

    Args:
        device: where the training computes.
        say: prints a line for the user.
    """

    def __init__(self, device: torch.device, say: Callable[[str], None]) -> None:
        self._device: torch.device | None = device if device.type == "cuda" and _can_ask() else None
        self._say = say

    def share(self) -> float | None:
        """The share of the last moments (up to a second) in which anything ran on the GPU, whoever started it.

        None on a CPU, without the extra, and where the driver does not tell, as of a part of a GPU; that is said once.
        """
        if self._device is None:
            return None
        import pynvml

        try:
            return torch.cuda.utilization(self._device) / 100
        except (RuntimeError, pynvml.NVMLError) as error:
            self._device = None
            self._say(f"the driver does not tell how busy the GPU is: {error}")
            return None


def _can_ask() -> bool:
    try:
        import pynvml  # noqa: F401 -- only whether it is there
    except ImportError:
        return False
    return True
