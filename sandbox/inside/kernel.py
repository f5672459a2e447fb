"""Thin wrappers over the kernel calls that the standard library lacks. Each raises OSError."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from typing import Any, Final

_libc = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000
SIGCHLD: Final = 17

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
MNT_DETACH: Final = 2
AT_FDCWD: Final = -100
AT_RECURSIVE: Final = 0x8000
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID = 1, 2

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
SECCOMP_MODE_FILTER: Final = 2
SIGKILL: Final = 9

# Calls with the same number on every machine.
NR_LANDLOCK_CREATE, NR_LANDLOCK_ADD, NR_LANDLOCK_RESTRICT = 444, 445, 446
NR_MOUNT_SETATTR: Final = 442
_NR = {
    "x86_64": {"clone": 56, "pivot_root": 155, "capset": 126},
    "aarch64": {"clone": 220, "pivot_root": 41, "capset": 91},
}.get(os.uname().machine, {})


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _syscall(what: str, number: int, *args: Any) -> int:
    _libc.syscall.restype = ctypes.c_long
    return _check(_libc.syscall(ctypes.c_long(number), *args), what)


# Every run makes these two calls, so the types of their arguments are settled here.
_prctl = _libc.prctl
_prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
_short_syscall = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_long, ctypes.c_long, ctypes.c_long, use_errno=True)(
    ("syscall", _libc)
)


def prctl(option: int, value: int, what: str, second: int = 0) -> None:
    """prctl(2) with one argument or two."""
    _check(_prctl(option, value, second, 0, 0), what)


def die_with_parent(parent_pid: int | None) -> None:
    """Ask for SIGKILL when the parent dies; exit at once when it is dead already."""
    prctl(PR_SET_PDEATHSIG, SIGKILL, "PR_SET_PDEATHSIG")
    if parent_pid is not None and os.getppid() != parent_pid:
        os._exit(0)


def no_new_privileges() -> None:
    """Set no_new_privs, which an unprivileged filter or ruleset needs."""
    prctl(PR_SET_NO_NEW_PRIVS, 1, "PR_SET_NO_NEW_PRIVS")


def undumpable() -> None:
    """Close /proc/PID of this process to its own user."""
    prctl(PR_SET_DUMPABLE, 0, "PR_SET_DUMPABLE")


def drop_capabilities() -> None:
    """Empty the permitted, effective and inheritable sets."""
    header = struct.pack("<Ii", 0x20080522, 0)
    _syscall("capset", _NR["capset"], ctypes.c_char_p(header), ctypes.c_char_p(b"\0" * 24))


class Filter:
    """An array of `struct sock_filter` in memory, ready to be installed; a run writes its process id at `offsets`."""

    def __init__(self, filter_bytes: bytes, offsets: tuple[int, ...] = ()) -> None:
        self._code = (ctypes.c_char * len(filter_bytes)).from_buffer_copy(filter_bytes)
        header = struct.pack("@HP", len(filter_bytes) // 8, ctypes.addressof(self._code))
        self._program = ctypes.create_string_buffer(header, len(header))
        self._address = ctypes.addressof(self._program)
        self._offsets = offsets

    def install(self) -> None:
        """Put this process under the filter, for good."""
        own = os.getpid()
        for offset in self._offsets:
            struct.pack_into("<I", self._code, offset, own)
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, "PR_SET_SECCOMP", self._address)


def clone(flags: int) -> int:
    """fork(2) into new namespaces. The caller must be single-threaded."""
    zero = ctypes.c_ulong(0)
    pid = _syscall("clone", _NR["clone"], ctypes.c_ulong(flags | SIGCHLD), zero, zero, zero, zero)
    if pid == 0:
        sys._clear_type_cache()
    return pid


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """mount(2)."""
    result = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        None if kind is None else kind.encode(),
        ctypes.c_ulong(flags),
        None if data is None else data.encode(),
    )
    _check(result, f"mount {target}")


def make_read_only(target: str) -> None:
    """Make a mount and everything below it read-only and nosuid."""
    attributes = struct.pack("<QQQQ", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID, 0, 0, 0)
    path = ctypes.c_char_p(os.fsencode(target))
    try:
        _syscall(
            f"mount_setattr {target}",
            NR_MOUNT_SETATTR,
            ctypes.c_int(AT_FDCWD),
            path,
            ctypes.c_uint(AT_RECURSIVE),
            ctypes.c_char_p(attributes),
            ctypes.c_size_t(len(attributes)),
        )
    except OSError:
        # Kernels before 5.12: flags that the original mount has are locked and must be repeated.
        locked = os.statvfs(target).f_flag & (MS_NODEV | MS_NOEXEC)
        mount("none", target, None, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | locked)


def pivot_root(new_root: str) -> None:
    """Make `new_root` the root of this mount namespace and let go of the old one."""
    os.chdir(new_root)
    dot = ctypes.c_char_p(b".")
    _syscall("pivot_root", _NR["pivot_root"], dot, dot)
    _check(_libc.umount2(b".", MNT_DETACH), "umount of the old root")
    os.chdir("/")


def landlock_abi() -> int:
    """The Landlock version of this kernel; 0 when there is none."""
    try:
        return _syscall(
            "landlock",
            NR_LANDLOCK_CREATE,
            ctypes.c_void_p(None),
            ctypes.c_size_t(0),
            ctypes.c_uint(1),
        )
    except OSError:
        return 0


def landlock_ruleset(attributes: bytes) -> int:
    """A new ruleset descriptor from a packed `struct landlock_ruleset_attr`."""
    return _syscall(
        "landlock_create_ruleset",
        NR_LANDLOCK_CREATE,
        ctypes.c_char_p(attributes),
        ctypes.c_size_t(len(attributes)),
        ctypes.c_uint(0),
    )


def landlock_allow_path(ruleset_fd: int, path_fd: int, access: int) -> None:
    """Allow `access` beneath the object that `path_fd` refers to."""
    rule = struct.pack("=Qi", access, path_fd)
    _syscall(
        "landlock_add_rule",
        NR_LANDLOCK_ADD,
        ctypes.c_int(ruleset_fd),
        ctypes.c_int(1),
        ctypes.c_char_p(rule),
        ctypes.c_uint(0),
    )


def landlock_restrict(ruleset_fd: int) -> None:
    """Put this process under a ruleset, for good."""
    _check(_short_syscall(NR_LANDLOCK_RESTRICT, ruleset_fd, 0), "landlock_restrict_self")
