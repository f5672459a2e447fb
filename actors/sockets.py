"""Where the processes of an engine find each other: a folder that lives no longer than they do."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

PREFIX = "o1coder-engine-"
YOUNG_S = 1.0
"""A folder that was made a moment ago may not be locked yet."""


class SocketFolder:
    """A folder for sockets below the directory for temporary files, which Unix sockets need for its short name.

    It is locked as long as this process lives, so that those of killed processes can be told and removed.
    """

    def __init__(self) -> None:
        remove_abandoned()
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def remove(self) -> None:
        """Remove it with what is in it; again changes nothing."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def remove_abandoned(young_s: float = YOUNG_S) -> None:
    """Remove the folders on this machine whose process is gone, but for those made in the last `young_s` seconds."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime < young_s:
                continue
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a process that lives holds it
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)
