from __future__ import annotations

import os
import signal
import time

import pytest

from cmd_extract.system.signals import interruptible


def test_an_interrupt_dropped_by_the_interpreter_is_sent_again() -> None:
    class SignalOnDeletion:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            # Python drops exceptions raised in a destructor.
            for _ in range(1000):
                pass

    def work() -> None:
        SignalOnDeletion()
        time.sleep(5)
        pytest.fail("the interrupt was lost")

    with pytest.raises(KeyboardInterrupt), interruptible():
        work()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
