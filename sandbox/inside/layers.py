"""The layers that a zygote puts on once: namespaces with a minimal root, and a Landlock ruleset."""

from __future__ import annotations

import os
import stat
import struct
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sandbox.inside import kernel

# Beside the mount namespace, which the minimal root needs; the keys are names of layers.
NAMESPACES: Final = {
    "network": kernel.CLONE_NEWNET,
    "ipc": kernel.CLONE_NEWIPC,
    "uts": kernel.CLONE_NEWUTS,
    "pid": kernel.CLONE_NEWPID,
}
# Inside a user namespace: 0 is the zygote (when started by root), this one is the runs.
INNER_UID: Final = 1000

FS_EXECUTE, FS_WRITE_FILE, FS_READ_FILE, FS_READ_DIR = 1, 2, 4, 8
_FS_BY_ABI: Final = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF, 5: 0xFFFF}
NET_ALL: Final = 3  # bind and connect over TCP
SCOPE_ALL: Final = 3  # abstract unix sockets and signals

DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")


def library_paths(packages: Sequence[str] = ()) -> list[str]:
    """Directories that importing a standard module may read, and the paths of the packages that are asked for."""
    paths = sysconfig.get_paths()
    wanted = [paths["stdlib"], paths["platstdlib"], str(Path(sys.base_prefix, "lib"))]
    wanted += [entry for entry in sys.path if entry]
    wanted += ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo"]
    sites = {str(Path(path).parent) for path in packages}
    wanted = [entry for entry in wanted if entry not in sites]  # only the package itself, not all that lies beside it
    wanted += packages
    found: list[str] = []
    for entry in wanted:
        real = Path(entry).resolve()
        if real.exists() and str(real) != "/" and not any(real.is_relative_to(other) for other in found):
            found = [other for other in found if not Path(other).is_relative_to(real)]
            found.append(str(real))
    return found


def reachable_by_others(path: str) -> bool:
    """Whether a user who owns nothing here can read below `path`."""
    parts = [Path(path), *Path(path).parents]
    return all(part.stat().st_mode & stat.S_IXOTH for part in parts) and bool(parts[0].stat().st_mode & stat.S_IROTH)


def write_id_maps(pid: int, privileged: bool, scratch_id: int) -> None:
    """Fill the user namespace of `pid`; called by its parent, outside."""
    for kind, own in (("uid", os.getuid()), ("gid", os.getgid())):
        if privileged:
            mapping = f"0 {own} 1\n{INNER_UID} {scratch_id} 1\n"
        else:
            mapping = f"{INNER_UID} {own} 1\n"
            if kind == "gid":
                Path(f"/proc/{pid}/setgroups").write_text("deny")
        Path(f"/proc/{pid}/{kind}_map").write_text(mapping)


def forbid_nested_user_namespaces() -> bool:
    """Let no process of this (fresh) user namespace make another, where it would have every capability.

    Says whether it worked: in some containers the kernel's settings are mounted read-only.
    """
    try:
        Path("/proc/sys/user/max_user_namespaces").write_text("0")
    except OSError:
        return False
    return True


def enter_minimal_root(libraries: list[str]) -> None:
    """Build a read-only root out of the library directories and a few devices, and move into it.

    Runs in a fresh mount namespace. Raises OSError naming the step that failed.
    """
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    # Anything that exists can be covered by the new root; the library paths are opened first.
    handles = [
        (path, os.open(path, os.O_PATH | os.O_CLOEXEC)) for path in (*libraries, *DEVICES) if Path(path).exists()
    ]
    root = "/tmp" if Path("/tmp").is_dir() else "/dev"
    kernel.mount("none", root, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=755,size=1m,nr_inodes=512")
    for path, handle in handles:
        target = Path(root + path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            target.mkdir(exist_ok=True)
        else:
            target.touch()
        kernel.mount(f"/proc/self/fd/{handle}", str(target), None, kernel.MS_BIND | kernel.MS_REC)
        os.close(handle)
    for link in ("/lib", "/lib64", "/usr/lib64"):
        if Path(link).is_symlink() and not Path(root + link).exists():
            Path(root + link).parent.mkdir(parents=True, exist_ok=True)
            Path(root + link).symlink_to(Path(link).readlink())
    kernel.make_read_only(root)
    kernel.pivot_root(root)


def landlock_ruleset(abi: int, libraries: list[str]) -> int:
    """A ruleset that lets a run read the libraries and nothing else, without TCP, signals or abstract sockets."""
    fs_access = _FS_BY_ABI[min(abi, 5)]
    attributes = struct.pack("=Q", fs_access)
    if abi >= 4:
        attributes += struct.pack("=Q", NET_ALL)
    if abi >= 6:
        attributes += struct.pack("=Q", SCOPE_ALL)
    ruleset = kernel.landlock_ruleset(attributes)
    allowed = [(path, FS_READ_FILE | FS_READ_DIR) for path in libraries]
    allowed += [(device, FS_READ_FILE) for device in DEVICES[1:]]
    allowed += [("/dev/null", FS_READ_FILE | FS_WRITE_FILE)]
    allowed += [("/etc/ld.so.cache", FS_READ_FILE)]
    for path, access in allowed:
        if Path(path).exists():
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
            kernel.landlock_allow_path(ruleset, handle, access)
            os.close(handle)
    return ruleset
