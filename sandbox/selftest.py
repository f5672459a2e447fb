"""Does a cell hold? Measured by a program inside it that tries what must not work, not by version numbers."""

from __future__ import annotations

import os
from typing import Final

from sandbox import judging
from sandbox.cell import Cell, CellError, sealed_file
from sandbox.records import Limits
from sandbox.verdicts import Verdict

# Prints the name of every attempt that succeeded.
PROBE: Final = """
import os, socket

def attempt(name, action):
    try:
        action()
    except (OSError, AttributeError):
        return
    print(name)

def fork():
    if os.fork() == 0:
        os._exit(0)

attempt("read /etc/passwd", lambda: open("/etc/passwd").read())
attempt("list /root", lambda: os.listdir("/root"))
attempt("list /proc", lambda: os.listdir("/proc"))
attempt("read the parent's environment", lambda: open(f"/proc/{os.getppid()}/environ").read())
attempt("write /tmp", lambda: open("/tmp/.sandbox-probe", "x"))
attempt("write /dev/shm", lambda: open("/dev/shm/.sandbox-probe", "x"))
attempt("open a socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
attempt("open a unix socket", lambda: socket.socket(socket.AF_UNIX))
attempt("fork", fork)
attempt("execute a program", lambda: os.execv("/bin/true", ["true"]))
attempt("signal the parent", lambda: os.kill(os.getppid(), 0))
attempt("signal everyone", lambda: os.kill(-1, 0))
attempt("create a memory file", lambda: os.memfd_create("probe"))
print("done")
"""


async def check(cell: Cell) -> None:
    """Run the probe in a cell. Raises CellError naming everything that should have failed and did not."""
    source_fd = sealed_file("source", PROBE.encode())
    try:
        spec = judging.spec_for_stdin(source_fd, "", Limits(cpu_s=5), None)
        raw = await cell.run(spec)
    finally:
        os.close(source_fd)
    failure = judging.infrastructure_failure(raw)
    if failure is not None:
        raise CellError(failure)
    end = judging.outcome(raw, spec)
    lines = raw.stdout.decode("utf-8", "replace").split("\n")
    if end.verdict is not Verdict.ACCEPTED or lines[-2:] != ["done", ""]:
        raise CellError(f"the self-test did not finish: {end.verdict}: {end.detail}")
    if lines[:-2]:
        raise CellError(f"the self-test could: {', '.join(lines[:-2])}")
