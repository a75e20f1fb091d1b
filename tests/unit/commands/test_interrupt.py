"""Ctrl+C during a training is never lost."""

from __future__ import annotations

import signal
import sys
import threading

import pytest

from trainer.commands.interrupt import interruptible

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="NOT CHECKED: signal.raise_signal ends a Windows process")


class PressesInDestructor:
    """Ctrl+C arrives while an object is destroyed."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_press_during_a_destructor_is_noted() -> None:
    with interruptible() as pressed:
        dropped = PressesInDestructor()
        assert not pressed()
        del dropped  # Python drops the KeyboardInterrupt
        assert pressed()


def test_press_raises_and_the_earlier_handler_returns() -> None:
    earlier = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is earlier


def test_other_threads_leave_the_handler_alone() -> None:
    seen: list[bool] = []

    def use() -> None:
        earlier = signal.getsignal(signal.SIGINT)
        with interruptible() as pressed:
            seen.extend([pressed(), signal.getsignal(signal.SIGINT) is earlier])

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert seen == [False, True]
