"""What a benchmark ran on, and where its result is kept."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
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


def draw(name: str, curves: Mapping[str, Sequence[float]], across: str, along: str, title: str) -> Path:
    """Curves over 1, 2, ... as `results/NAME.svg`: later ones dashed, so that equal ones are seen."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = name  # the same curves give the same file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
    for number, (label, values) in enumerate(curves.items()):
        style = {"linewidth": 4, "alpha": 0.4} if number == 0 else {"linewidth": 1.5, "linestyle": "--"}
        axes.plot(range(1, len(values) + 1), values, label=label, **style)
    axes.set(xlabel=across, ylabel=along, title=title, yscale="log")
    axes.legend()
    axes.grid(visible=True, alpha=0.3)
    target = FOLDER / f"{name}.svg"
    figure.savefig(target, metadata={"Date": None})
    pyplot.close(figure)
    return target
