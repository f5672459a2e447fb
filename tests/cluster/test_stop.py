"""A signal ends the run, whatever becomes of the exception that it raises."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

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


WAITING = """
import os, signal, sys, threading, time
from cluster import workers
from cluster.stop import interruptible

workers.prepare_environment()
with interruptible() as stop:
    import ray
    workers.start_ray("stop")
    stop.listen()

    @ray.remote
    def slow():
        time.sleep(100)

    call = slow.remote()
    threading.Timer(1.0, os.killpg if sys.argv[2] == "group" else os.kill, (os.getpid(), signal.SIGTERM)).start()
    began = time.monotonic()
    try:
        ray.get(call, timeout=90) if sys.argv[1] == "get" else ray.wait([call], timeout=90)
    except BaseException:
        print("ended after", time.monotonic() - began, stop.signal, flush=True)
    os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("who", ["process", "group"])
@pytest.mark.parametrize("call", ["get", "wait"])
def test_a_signal_ends_what_waits_for_ray_at_once(call, who):
    """In a group the signal ends Ray's own processes as well, and no call will ever be answered."""
    root = Path(__file__).resolve().parent.parent.parent
    run = subprocess.run(
        [sys.executable, "-c", WAITING, call, who],
        cwd=root, capture_output=True, text=True, timeout=110, start_new_session=True, check=True,
    )  # fmt: skip
    words = run.stdout.splitlines()[-1].split()
    assert words[:2] == ["ended", "after"], run.stdout + run.stderr
    assert float(words[2]) < 15
    assert words[3] == "SIGTERM"
