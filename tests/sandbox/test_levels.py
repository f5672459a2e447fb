"""Places that allow less: the ladder goes down one level at a time, says why, and what is left still holds."""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_faults import python_for_others
from test_pool import ROOT

from sandbox.inside.kernel import PR_SET_SECCOMP
from sandbox.inside.seccomp import (
    ENOSYS,
    EPERM,
    JMP_JEQ_K,
    JMP_JSET_K,
    LD_W_ABS,
    OFFSET_ARCH,
    OFFSET_ARGS,
    OFFSET_NR,
    RET_ALLOW,
    RET_ERRNO,
    RET_K,
    Insn,
)
from sandbox.inside.syscalls import AUDIT_ARCH, numbers_of

pytestmark = pytest.mark.slow  # starts processes all the time

MACHINE = os.uname().machine
NR_CLONE3 = 435
NEW_NAMESPACES = 0x7E02_0000  # every CLONE_NEW* flag

# What Docker's default profile refuses to a process without CAP_SYS_ADMIN.
NAMESPACES = [
    "unshare",
    "setns",
    "mount",
    "umount2",
    "pivot_root",
    "mount_setattr",
    "fsopen",
    "open_tree",
    "move_mount",
]
LANDLOCK = ["landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"]


def profile(denied: list[str], seccomp: bool) -> bytes:
    """A filter that refuses namespaces, the calls named, and other filters unless `seccomp`."""
    numbers = numbers_of(MACHINE)
    allow, refuse = Insn(RET_K, 0, 0, RET_ALLOW), Insn(RET_K, 0, 0, RET_ERRNO | EPERM)
    code = [Insn(LD_W_ABS, 0, 0, OFFSET_ARCH), Insn(JMP_JEQ_K, 1, 0, AUDIT_ARCH[MACHINE]), allow]
    code.append(Insn(LD_W_ABS, 0, 0, OFFSET_NR))
    for name in denied:
        code += [Insn(JMP_JEQ_K, 0, 1, numbers[name]), refuse]
    code += [Insn(JMP_JEQ_K, 0, 1, NR_CLONE3), Insn(RET_K, 0, 0, RET_ERRNO | ENOSYS)]
    flags = Insn(LD_W_ABS, 0, 0, OFFSET_ARGS)
    code += [Insn(JMP_JEQ_K, 0, 4, numbers["clone"]), flags, Insn(JMP_JSET_K, 0, 1, NEW_NAMESPACES), refuse, allow]
    if not seccomp:
        invalid = Insn(RET_K, 0, 0, RET_ERRNO | errno.EINVAL)
        code += [Insn(JMP_JEQ_K, 0, 1, numbers["seccomp"]), invalid]
        code += [Insn(JMP_JEQ_K, 0, 4, numbers["prctl"]), flags, Insn(JMP_JEQ_K, 0, 1, PR_SET_SECCOMP), invalid, allow]
    code.append(allow)
    return b"".join(struct.pack("<HBBI", *insn) for insn in code)


ATTEMPT = "try:\n  {}\n  print('done')\nexcept OSError:\n  print('refused')"
ATTACKS = {
    "nothing": ("print('refused')", "accepted"),
    "write a file of everybody": (ATTEMPT.format("open('CANARY', 'a').write('x')"), "accepted"),
    "read a file of everybody": (ATTEMPT.format("open('CANARY').read()"), "accepted"),
    "make a file": (ATTEMPT.format("open('CANARY.new', 'x')"), "accepted"),
    "read the executor's environment": (
        "import os, re\nfor pid in [os.getppid(), EXECUTOR, 'self']:\n"
        "  try:\n    if b'a-secret' in open(f'/proc/{pid}/environ', 'rb').read(): print('done')\n"
        "  except OSError: pass\n"
        "print('done' if 'a-secret' in str(os.environ) else 'refused')",
        "accepted",
    ),
    "open a socket": ("import socket\n" + ATTEMPT.format("socket.socket()"), "accepted"),
    "fork": ("import os\n" + ATTEMPT.format("os.fork()"), "accepted"),
    "signal the executor": ("import os\n" + ATTEMPT.format("os.kill(EXECUTOR, 0)"), "accepted"),
    "execute": ("import os\n" + ATTEMPT.format("os.execv('/bin/true', ['true'])"), "accepted"),
    "trace the executor": ("import ctypes\nctypes.CDLL(None).ptrace(16, EXECUTOR, 0, 0)", "security_violation"),
    "new namespaces": ("import ctypes\nctypes.CDLL(None).unshare(0x10000000)", "security_violation"),
    "a right answer": ("print('refused' if sum(range(10)) == 45 else 'done')", "accepted"),
    "a wrong answer": ("print('no')", "wrong_answer"),
}

RESTRICTED = """
import asyncio, json, os, sys
from sandbox import *
from sandbox.inside import kernel
kernel.no_new_privileges()
kernel.Filter(bytes.fromhex(sys.argv[1])).install()
async def main():
    attacks = json.loads(sys.argv[2])
    try:
        async with LocalPool(1) as pool:
            out = {"level": pool.isolation.level, "layers": pool.isolation.layers, "verdicts": {}}
            for name, source in attacks.items():
                submission = Submission(source=source.replace("EXECUTOR", str(os.getpid())),
                                        cases=[StdioCase(stdin="", expected="refused")], limits=Limits(cpu_s=1))
                case = (await pool.judge(submission)).cases[0]
                out["verdicts"][name] = (str(case.verdict), str(case.detail))
    except SandboxUnavailableError as error:
        out = {"attempts": error.attempts, "text": str(error)}
    print(json.dumps(out))
asyncio.run(main())
"""


@pytest.fixture
def canary() -> Iterator[Path]:
    """A file that everybody may write, in a directory that everybody may write."""
    folder = Path("/tmp") / f"sandbox-canary-{os.getpid()}"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    file = folder / "canary"
    file.write_text("alive")
    file.chmod(0o666)
    yield file
    shutil.rmtree(folder)


def restricted(denied: list[str], canary: Path, seccomp: bool = True) -> Any:
    """What a pool does in a process under such a profile."""
    attacks = {name: source.replace("CANARY", str(canary)) for name, (source, _) in ATTACKS.items()}
    done = subprocess.run(
        [sys.executable, "-c", RESTRICTED, profile(denied, seccomp).hex(), json.dumps(attacks)],
        capture_output=True, text=True, cwd=ROOT, timeout=60, env={**os.environ, "TOKEN": "a-secret"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("denied, level", [(NAMESPACES, 2), ([*NAMESPACES, *LANDLOCK], 1)])
def test_a_profile_takes_a_level_away(denied: list[str], level: int, canary: Path) -> None:
    found = restricted(denied, canary)
    if level == 2 and found["level"] == 1:
        pytest.skip(f"no Landlock here: {found['layers']}")
    assert found["level"] == level
    assert found["layers"]["seccomp"] == "enforced"
    assert "namespaces" in found["layers"]["level 3 (cell)"]
    assert "not permitted" in found["layers"]["level 3 (cell)"]
    if level == 1:
        assert "Landlock" in found["layers"]["level 2 (landlock)"]
    verdicts = {name: verdict for name, (verdict, _) in found["verdicts"].items()}
    assert verdicts == {name: verdict for name, (_, verdict) in ATTACKS.items()}, found
    assert canary.read_text() == "alive" and not canary.with_suffix(".new").exists()


def test_without_filters_nothing_runs(canary: Path) -> None:
    found = restricted([*NAMESPACES, *LANDLOCK], canary, seccomp=False)
    assert set(found["attempts"]) == {"3", "2", "1", "0"}
    assert "namespaces" in found["attempts"]["3"]
    assert "Landlock" in found["attempts"]["2"]
    assert "PR_SET_SECCOMP" in found["attempts"]["1"] and "Invalid argument" in found["attempts"]["1"]
    assert "allow_unsafe" in found["attempts"]["0"]
    assert all(why in found["text"] for why in found["attempts"].values())


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_without_privilege() -> None:
    """A user without any right: every level that is reached passes the self-test and judges."""
    code = (
        "import asyncio, json, os, sys, concurrent.futures\nfrom sandbox import *\n"
        "async def main():\n  out = {}\n"
        "  os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        f"  sys.executable = {python_for_others()!r}\n"
        "  for level in (3, 2, 1):\n    try:\n"
        "      async with LocalPool(1, level=level) as pool:\n"
        "        r = await pool.judge(Submission(source='print(1)', cases=[StdioCase(stdin='', expected='1')]))\n"
        "        out[level] = r.verdict\n    except SandboxUnavailableError as e: out[level] = str(e)\n"
        "  print(json.dumps(out))\nasyncio.run(main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    levels = json.loads(done.stdout)
    assert levels["1"] == "accepted", levels
    for level in ("3", "2"):
        # Not every machine lets a plain user have namespaces or Landlock; then the reason is given.
        assert levels[level] == "accepted" or "level" in levels[level], levels


def test_container_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sandbox.isolation import container_hint

    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert container_hint(tmp_path) is None
    (tmp_path / "proc" / "1").mkdir(parents=True)
    (tmp_path / "proc" / "1" / "cgroup").write_text("0::/kubepods/pod1\n")
    assert container_hint(tmp_path) == "kubepods"
    (tmp_path / ".dockerenv").touch()
    assert container_hint(tmp_path) == "docker"
