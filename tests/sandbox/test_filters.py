"""The system call filters of both machines, interpreted: what each call leads to, whatever machine this is."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.inside import seccomp
from sandbox.inside.syscalls import AUDIT_ARCH, numbers_of

MACHINES = ("x86_64", "aarch64")
PID: Final = 4711
ALLOW, KILL = seccomp.RET_ALLOW, seccomp.RET_KILL_PROCESS
EPERM, EACCES, ENOSYS = (seccomp.RET_ERRNO | number for number in (1, 13, 38))
# Which of two answers the kernel takes, strongest first.
STRENGTH = (KILL, EPERM, EACCES, seccomp.RET_ERRNO | seccomp.ENOTTY, ENOSYS, ALLOW)


def run(filter_bytes: bytes, number: int, arch: int, args: tuple[int, ...] = ()) -> int:
    """Interpret a classic BPF program on `struct seccomp_data`, as the kernel does."""
    data = struct.pack("<IIQ6Q", number, arch, 0, *(args + (0,) * (6 - len(args))))
    program = list(struct.iter_unpack("<HBBI", filter_bytes))
    at, accumulator = 0, 0
    while True:
        code, jump_true, jump_false, k = program[at]
        at += 1
        if code == seccomp.LD_W_ABS:
            (accumulator,) = struct.unpack_from("<I", data, k)
        elif code == seccomp.RET_K:
            return k
        elif code == seccomp.JMP_JA:
            at += k
        else:
            holds = {
                seccomp.JMP_JEQ_K: accumulator == k,
                seccomp.JMP_JGE_K: accumulator >= k,
                seccomp.JMP_JSET_K: bool(accumulator & k),
            }[code]
            at += jump_true if holds else jump_false


class Filters:
    """Both filters of a machine, as a run has them."""

    def __init__(self, machine: str, allow_files: bool = True) -> None:
        self.machine = machine
        self.numbers = numbers_of(machine)
        own = bytearray(seccomp.build_run(machine))
        for offset in seccomp.pid_offsets(bytes(own)):
            struct.pack_into("<I", own, offset, PID)
        self.run_filter = bytes(own)
        self.cell_filter = seccomp.build_cell(machine, allow_files)

    def each(self, number: int, *args: int, arch: int | None = None) -> tuple[int, int]:
        """What the cell's and the run's filter say."""
        arch = AUDIT_ARCH[self.machine] if arch is None else arch
        return run(self.cell_filter, number, arch, args), run(self.run_filter, number, arch, args)

    def __call__(self, name: str | int, *args: int) -> int:
        """What becomes of a call."""
        number = self.numbers[name] if isinstance(name, str) else name
        return min(self.each(number, *args), key=STRENGTH.index)


@pytest.fixture(params=MACHINES)
def filters(request: pytest.FixtureRequest) -> Filters:
    return Filters(request.param)


def test_every_call_has_its_answer(filters: Filters) -> None:
    for name in filters.numbers:
        if name in seccomp.SPECIAL or name in seccomp.BOOT:
            continue
        expected = EPERM
        if name in seccomp.ALLOW or name in seccomp.FILES:
            expected = ALLOW
        elif name in seccomp.KILL:
            expected = KILL
        assert filters(name) == expected, name


def test_what_boot_needs_is_taken_away_again(filters: Filters) -> None:
    for name in seccomp.BOOT & filters.numbers.keys():
        cell, own = filters.each(filters.numbers[name], 1, 2, 3)
        assert cell == ALLOW and own in (EPERM, KILL), name


def test_each_filter_alone_stops_what_takes_no_privilege(filters: Filters) -> None:
    for name in seccomp.TWICE & filters.numbers.keys():
        for answer in filters.each(filters.numbers[name], 40):
            assert answer in (EPERM, KILL), name


def test_arguments_decide(filters: Filters) -> None:
    thread, namespace = 0x00010000, 0x10000000
    rows = [
        (filters("clone", thread | 0x3D0F00), ALLOW), (filters("clone", 17), EPERM),
        (filters("clone", namespace), EPERM),
        (filters("clone3", 0), ENOSYS),
        (filters("kill", PID, 9), ALLOW), (filters("kill", PID + 1, 9), EPERM), (filters("kill", 2**32 - 1, 9), EPERM),
        (filters("tgkill", PID, 1, 9), ALLOW), (filters("tgkill", 1, 1, 9), EPERM),
        (filters("prctl", 15), ALLOW), (filters("prctl", 22), EPERM), (filters("prctl", 4, 1), EPERM),
        (filters("socketpair", 1), ALLOW), (filters("socketpair", 2), EPERM),
        (filters("sendto", 3, 0, 1, 0, 0), ALLOW), (filters("sendto", 3, 0, 1, 0, 8), EPERM),
        (filters("sendto", 3, 0, 1, 0, 1 << 40), EPERM),
        (filters("fcntl", 0, 3), ALLOW), (filters("fcntl", 0, 6), EPERM),
        (filters("prlimit64", 0), ALLOW), (filters("prlimit64", PID), ALLOW), (filters("prlimit64", 1), EPERM),
        (filters("ioctl", 0, 0x5401), ALLOW), (filters("ioctl", 0, 0x5412), seccomp.RET_ERRNO | seccomp.ENOTTY),
    ]  # fmt: skip
    assert [answer for answer, _ in rows] == [expected for _, expected in rows]


@pytest.mark.parametrize("machine", MACHINES)
def test_no_file_is_opened_without_files(machine: str) -> None:
    without = Filters(machine, allow_files=False)
    for name in seccomp.FILES & without.numbers.keys():
        empty_path = (0, 0, 0, seccomp.AT_EMPTY_PATH)
        assert without(name, 1, 2, 3, 0) == EACCES, name
        assert without(name, *empty_path) == (ALLOW if name == "newfstatat" else EACCES), name


@given(st.integers(0, 0xFFFFFFFF), st.sampled_from(MACHINES), st.sampled_from(MACHINES))
@settings(max_examples=500, deadline=None)
def test_calls_of_no_name_and_of_other_modes(number: int, machine: str, arch: str) -> None:
    made = Filters(machine)
    answers = made.each(number, arch=AUDIT_ARCH[arch])
    if arch != machine or (machine == "x86_64" and number >= seccomp.X32_BIT):
        assert answers == (KILL, KILL)
    elif number not in made.numbers.values():
        assert answers[0] == ENOSYS


def defined(header: str) -> Iterator[tuple[str, int]]:
    """The numbers that a kernel header defines, by name."""
    for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", header):
        yield name, int(number)


HEADERS = {"x86_64": "x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "asm-generic/unistd.h"}


@pytest.mark.parametrize("machine", MACHINES)
def test_numbers_are_the_kernel_s(machine: str) -> None:
    path = Path("/usr/include") / HEADERS[machine]
    if not path.exists():
        pytest.skip(f"{path} is not installed")
    known = dict(defined(path.read_text()))
    # The generic header has older names for two calls that aarch64 calls otherwise, and none for those it lacks.
    known |= {"newfstatat": known.get("newfstatat", known.get("fstatat", -1))}
    wrong = {
        name: (number, known.get(name))
        for name, number in numbers_of(machine).items()
        if known.get(name, number) != number
    }
    assert wrong == {}
    unknown = {name for name in numbers_of(machine) if name not in known}
    assert len(unknown) <= 4, unknown


def test_filters_fit_the_kernel(filters: Filters) -> None:
    for made in (filters.cell_filter, filters.run_filter):
        assert len(made) % 8 == 0 and len(made) // 8 <= 4096
    # The one that every run installs is the short one.
    assert len(filters.run_filter) < len(filters.cell_filter) / 2
