"""How isolated a run is: the levels, the report attached to every result, the error when no level is reached."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict

LEVEL_NAMES: Final = {3: "cell", 2: "landlock", 1: "seccomp", 0: "none"}
BEST_LEVEL: Final = 3
UNSAFE_VARIABLE: Final = "O1CODER_SANDBOX_ALLOW_UNSAFE"


class IsolationReport(BaseModel):
    """What protects the host from a run.

    `level` is 3 (`cell`: namespaces, Landlock where present, seccomp, limits), 2 (`landlock`: the same without
    namespaces), 1 (`seccomp`: no file system at all) or 0 (`none`: limits only). `layers` says for each layer
    "enforced", "unavailable: why", "failed: why" or "disabled"; a better level that was tried in vain is in it too,
    e.g. as "level 3 (cell)", with the reason. `container_hint` names the container that the process seems to run in,
    None where nothing tells of one.

    A run on a remote server has level 0 (`remote`) and the server's address as the only layer: what protects its host
    cannot be seen from here. `kernel` is "unknown" then, `landlock_abi` and `uid` are -1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    level: int
    level_name: str
    layers: dict[str, str]
    kernel: str
    landlock_abi: int
    uid: int
    container_hint: str | None = None


class PackageError(ValueError):
    """A package that programs were to have cannot be loaded into a cell; no level would change that."""


class SandboxUnavailableError(RuntimeError):
    """No acceptable isolation on this machine; `attempts` has one line per level that was tried."""

    def __init__(self, attempts: dict[int, str], min_level: int) -> None:
        self.attempts = attempts
        tried = "; ".join(f"level {level} ({LEVEL_NAMES[level]}): {why}" for level, why in attempts.items())
        super().__init__(
            f"no isolation of level {min_level} ({LEVEL_NAMES.get(min_level, '?')}) or better is available: {tried}"
        )


def unsafe_allowed(allow_unsafe: bool) -> bool:
    """Running without isolation needs the flag and the environment variable, so that neither slips in alone."""
    return allow_unsafe and os.environ.get(UNSAFE_VARIABLE) == "1"


def report_from_hello(level: int, layers: dict[str, str], landlock_abi: int) -> IsolationReport:
    """The report of a zygote that has come up at `level`."""
    return IsolationReport(
        level=level,
        level_name=LEVEL_NAMES[level],
        layers=layers,
        kernel=os.uname().release,
        landlock_abi=landlock_abi,
        uid=os.getuid(),
        container_hint=container_hint(),
    )


def container_hint(root: Path = Path("/")) -> str | None:
    """What kind of container this is, by its usual traces below `root`; for people, nothing depends on it."""
    if (root / "var/run/secrets/kubernetes.io").exists() or "KUBERNETES_SERVICE_HOST" in os.environ:
        return "kubernetes"
    for trace, name in ((".dockerenv", "docker"), ("run/.containerenv", "podman")):
        if (root / trace).exists():
            return name
    try:
        groups = (root / "proc/1/cgroup").read_text(errors="replace")
    except OSError:
        return None
    return next((name for name in ("docker", "kubepods", "lxc", "containerd") if name in groups), None)
