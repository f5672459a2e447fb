"""How much memory a run may still take: what the machine has, and what the control group (container, job) allows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil

MEMBERSHIP = Path("/proc/self/cgroup")
MOUNTS = Path("/sys/fs/cgroup")


def available(membership: Path = MEMBERSHIP, mounts: Path = MOUNTS) -> tuple[int, bool]:
    """Bytes that can be taken now, and whether it is the control group that sets this bound."""
    machine = psutil.virtual_memory().available
    group = cgroup_free(membership, mounts)
    return (machine, False) if group is None or group >= machine else (group, True)


def cgroup_free(membership: Path = MEMBERSHIP, mounts: Path = MOUNTS) -> int | None:
    """Bytes below the tightest memory limit of this process's control groups, version 1 or 2; None where none is set.

    membership: a file as /proc/self/cgroup. mounts: a folder as /sys/fs/cgroup. File pages that are not in active use
    count as free: the kernel takes them back before it kills.
    """
    free = [left for folder in _groups(membership, mounts) if (left := _left(folder)) is not None]
    return max(0, min(free)) if free else None


def _groups(membership: Path, mounts: Path) -> Iterator[Path]:
    """The folders that may hold a limit: of the process's group and of every group above it, which bind as well."""
    try:
        lines = membership.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            tops = (mounts, mounts / "unified")
        elif "memory" in controllers.split(","):
            tops = (mounts / "memory",)
        else:
            continue
        parts = PurePosixPath(path).parts[1:]
        # In a container the path may be the host's and lead nowhere; the limit is then at the top of the mount.
        inside = () if ".." in parts else parts
        for top in tops:
            for depth in range(len(inside), -1, -1):
                yield top.joinpath(*inside[:depth])


def _left(folder: Path) -> int | None:
    for limit_file, used_file in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        limit, used = _number(folder / limit_file), _number(folder / used_file)
        if limit is not None and used is not None:
            return limit - used + _inactive(folder / "memory.stat")
    return None


def _number(file: Path) -> int | None:
    """What the file holds; None where it is missing or says "max"."""
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _inactive(stat: Path) -> int:
    """Bytes of file pages not in active use. Version 1 counts the groups below only under `total_`."""
    try:
        rows = dict(line.split(" ", 1) for line in stat.read_text(encoding="ascii").splitlines() if " " in line)
        return int(rows.get("total_inactive_file", rows.get("inactive_file", "0")))
    except (OSError, ValueError):
        return 0
