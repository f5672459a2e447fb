"""A signal ends the run, whatever becomes of the exception that it raises."""

import contextlib
import os
import signal

import pytest

from cluster.stop import Interrupted, Stop, interruptible


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_interrupts_and_is_remembered(number):
    before = signal.getsignal(number)
    with interruptible() as stop:
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), number)
        assert stop.signal == number.name
        os.kill(os.getpid(), number)  # a second one does not disturb the shutdown
    assert signal.getsignal(number) is before


def test_a_swallowed_interruption_comes_back_at_the_next_check():
    with interruptible() as stop:
        stop.check()
        with contextlib.suppress(BaseException):  # as compiled code does
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted):
            stop.check()


def test_a_later_signal_is_heard_again(monkeypatch):
    """The first may have been swallowed where nothing checks."""
    monkeypatch.setattr("cluster.stop.PATIENCE_S", 0.0)
    with interruptible() as stop:
        for number in (signal.SIGTERM, signal.SIGINT):
            with pytest.raises(Interrupted):
                os.kill(os.getpid(), number)
        assert stop.signal == "SIGTERM"


def test_nothing_happens_without_a_signal():
    Stop().check()


def test_a_signal_waits_for_what_must_not_be_cut_in_two():
    done = []
    with interruptible() as stop:
        with pytest.raises(Interrupted):
            with stop.held():
                os.kill(os.getpid(), signal.SIGTERM)
                done.append("whole")
            done.append("went on")
    assert done == ["whole"]
