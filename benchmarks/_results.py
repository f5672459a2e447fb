"""What a benchmark ran on, and where its result is kept."""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "results"


def machine() -> dict[str, Any]:
    """What it ran on."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": model, "cores": len(os.sched_getaffinity(0)), "kernel": platform.release(),
        "python": platform.python_version(), "date": time.strftime("%Y-%m-%d"),
        "load_average": round(os.getloadavg()[0], 2),
    }  # fmt: skip


def keep(name: str, found: dict[str, Any]) -> None:
    """Write a full result, whole or not at all."""
    FOLDER.mkdir(exist_ok=True)
    scratch = FOLDER / f"{name}.new"
    scratch.write_text(json.dumps(found, indent=2) + "\n")
    scratch.replace(FOLDER / f"{name}.json")
