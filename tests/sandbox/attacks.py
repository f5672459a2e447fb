"""What a hostile program is, and the register of what each numbered attack is covered by.

The attacks themselves stand in three tables: `attacks_forging`, `attacks_host` and `attacks_resources`. The numbers are
those of the list of hostile programs that the sandbox was designed against:

     1-30  forge an answer                   53-66  processes, signals, priorities
    31-42  secrets and files                 67-74  the kernel's surface
    43-52  network and other processes       75-93  resources
                                             94-99  the sandbox itself fails, or parts of it are missing
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar

from sandbox_bench import QUICK

from sandbox import CallCase, ExactValue, Limits, StdioCase, Verdict
from sandbox.inside.syscalls import numbers_of

NUMBERS: Final = frozenset(range(1, 100))
# A program prints this where it has done what must be impossible. No source contains it in one piece.
HARM: Final = "HARM:"

AC = frozenset({Verdict.ACCEPTED})
WA = frozenset({Verdict.WRONG_ANSWER})
RE = frozenset({Verdict.RUNTIME_ERROR})
CE = frozenset({Verdict.COMPILE_ERROR})
TLE = frozenset({Verdict.TIME_LIMIT})
MLE = frozenset({Verdict.MEMORY_LIMIT})
OLE = frozenset({Verdict.OUTPUT_LIMIT})
SV = frozenset({Verdict.SECURITY_VIOLATION})

SHORT = Limits(cpu_s=0.15, wall_s=1.0, memory_mb=256)
SLEEPER = Limits(cpu_s=0.3, wall_s=0.3, memory_mb=256)

# What programs find that attack something outside: the places to attack, and the means.
PREAMBLE = """
import ctypes, os, signal, socket, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def checked(result):
    if result < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def call(name, *arguments):
    return checked(libc.syscall(ctypes.c_long(NR[name]), *arguments))
def harm(*what):
    print('HA' + 'RM:', *what, flush=True)
def unless_refused(action):
    # What only the filter refuses may still fail for lack of support or of arguments.
    try: action()
    except PermissionError: raise
    except OSError: pass
"""


@dataclass(frozen=True)
class Attack:
    """One hostile program and the verdicts it may get.

    outside: it starts with `PREAMBLE`, and with `HOST`, the facts that `Surroundings` gives, and `NR`, the numbers of
    system calls. forging: it wants to be accepted, and never is. naked: without any sandbox it does visible harm, and
    none that would last. needs_files: its
    verdict at the level without files. slow: it takes a second or more.
    """

    number: int
    name: str
    source: str
    verdicts: frozenset[Verdict]
    kind: Literal["stdio", "call"] = "stdio"
    limits: Limits = QUICK
    stdin: str = ""
    args: tuple[Any, ...] = ()
    expected: Any = "ok"
    comparator: Any = field(default_factory=ExactValue)
    outside: bool = False
    forging: bool = False
    naked: bool = False
    needs_files: frozenset[Verdict] | None = None
    slow: bool = False

    def __str__(self) -> str:
        return f"{self.number:02}-{self.name}".replace(" ", "-")

    def program(self, facts: Mapping[str, Any]) -> str:
        """The source as it is submitted."""
        if not self.outside:
            return self.source
        used = {name: number for name, number in numbers_of(os.uname().machine).items() if f"'{name}'" in self.source}
        return f"HOST = {dict(facts)!r}\nNR = {used!r}\n{PREAMBLE}\n{self.source}\nprint('ok')\n"

    def case(self) -> StdioCase | CallCase:
        """The case it is judged by."""
        if self.kind == "stdio":
            return StdioCase(stdin=self.stdin, expected=self.expected)
        return CallCase(args=list(self.args), expected=self.expected, comparator=self.comparator)

    def allowed(self, level: int) -> frozenset[Verdict]:
        """The verdicts that are right at an isolation level."""
        return self.needs_files if level == 1 and self.needs_files is not None else self.verdicts


_Test = TypeVar("_Test", bound=Callable[..., Any])
COVERED_BY_TESTS: Final[dict[int, list[str]]] = {}


def covers(*numbers: int) -> Callable[[_Test], _Test]:
    """Say that a test of its own covers these numbers of the list."""

    def register(test: _Test) -> _Test:
        for number in numbers:
            COVERED_BY_TESTS.setdefault(number, []).append(test.__name__)
        return test

    return register
