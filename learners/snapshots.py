"""Snapshots of a training in progress: whole or absent, and the latest readable whatever ends the process."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reasoning.durable import sync, sync_tree, write_atomic

CURSOR = "cursor.json"
_PARTIAL = ".partial"


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a training stood: `step` optimizer steps done, with their `rows` of metrics."""

    step: int
    rows: list[dict[str, float]]


class Snapshots:
    """The snapshots below `folder`, one at a time being the latest; `digest`: of what is trained on and how. Those of
    another digest are of no use and go with the first that is published.

    All ranks of a group work on one folder, on a file system that they share; `begin` and `publish` are for one rank
    alone. Whoever owns the folder removes it when what came of the training is safe.
    """

    def __init__(self, folder: Path, digest: str) -> None:
        self.folder, self.digest = folder, digest

    def latest(self) -> tuple[Path, Cursor] | None:
        """The newest snapshot with this digest. One that cannot be read is none."""
        for path in sorted(self.folder.glob("step-*"), reverse=True):
            if path.suffix == _PARTIAL:
                continue
            try:
                told: dict[str, Any] = json.loads((path / CURSOR).read_text(encoding="utf-8"))
                if told["digest"] == self.digest:
                    return path, Cursor(int(told["step"]), list(told["rows"]))
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return None

    def scratch(self, step: int) -> Path:
        """Where the ranks write what they hold after `step` optimizer steps."""
        return self.folder / f"step-{step:08}{_PARTIAL}"

    def begin(self, step: int) -> None:
        """Make the scratch directory, empty; what earlier ones left goes. Raises OSError."""
        for left in self.folder.glob(f"step-*{_PARTIAL}"):
            shutil.rmtree(left)
        self.scratch(step).mkdir(parents=True)

    def publish(self, cursor: Cursor) -> None:
        """What lies in the scratch directory becomes the latest snapshot, and all others go. Raises OSError."""
        scratch = self.scratch(cursor.step)
        told = {"digest": self.digest, "step": cursor.step, "rows": cursor.rows}
        write_atomic(scratch / CURSOR, json.dumps(told))
        sync_tree(scratch)
        final = scratch.with_suffix("")
        if final.exists():  # of another digest, or it cannot be read: this training would have gone on from it
            _drop(final)
        scratch.rename(final)
        sync(self.folder)
        for old in self.folder.glob("step-*"):
            if old != final:
                _drop(old)


def _drop(snapshot: Path) -> None:
    """Delete a snapshot, first of all what makes it one: a kill in between leaves no torso that looks whole."""
    (snapshot / CURSOR).unlink(missing_ok=True)
    sync(snapshot)
    shutil.rmtree(snapshot)
