"""What tests of leaks count: whatever a cell may leave open, and nothing that other threads of this process do."""

import os
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
from sandbox_bench import described_fds, more_fds


@contextmanager
def pair(kind: int) -> Iterator[None]:
    with ExitStack() as stack:
        for one in socket.socketpair(socket.AF_UNIX, kind):
            stack.enter_context(one)
        yield


@contextmanager
def descriptors(make: Callable[[], tuple[int, ...]]) -> Iterator[None]:
    made = make()
    yield
    for fd in made:
        os.close(fd)


@pytest.mark.parametrize(
    ("leak", "count"),
    [
        (lambda: pair(socket.SOCK_SEQPACKET), 2),
        (lambda: descriptors(os.pipe), 2),
        (lambda: descriptors(lambda: (os.memfd_create("run"),)), 1),
        (lambda: descriptors(lambda: (os.open(os.devnull, os.O_RDONLY),)), 1),
        (lambda: descriptors(lambda: (os.pidfd_open(os.getpid()),)), 1),
        (lambda: pair(socket.SOCK_STREAM), 0),
        (lambda: descriptors(lambda: (os.eventfd(0),)), 0),
    ],
)
def test_a_leak_is_seen_until_it_is_closed(leak, count) -> None:
    before = described_fds()
    with leak():
        assert more_fds(before, 0.05).total() == count
    assert not more_fds(before)


def test_an_event_loop_has_descriptors_of_its_own() -> None:
    before = described_fds()
    with select.epoll():
        assert not more_fds(before, 0.05)
