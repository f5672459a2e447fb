"""The driver's own log: what goes wrong beside the run is recorded in a file, never over what the terminal shows."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path


class _File(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A disk that is full must not end in tracebacks of the logging itself."""


@contextlib.contextmanager
def driver_log(file: Path) -> Iterator[None]:
    """Write warnings and errors of every logger of this process to `file` (appended), and to the terminal none."""
    handler = _File(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.setLevel(logging.WARNING)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        with contextlib.suppress(OSError):  # what was buffered may not fit either
            handler.close()


@contextlib.contextmanager
def unlogged(name: str) -> Iterator[None]:
    """Keep the warnings of logger `name` off the terminal while no file takes them; errors carry the reasons anyway."""
    silent = logging.NullHandler()
    logging.getLogger(name).addHandler(silent)
    try:
        yield
    finally:
        logging.getLogger(name).removeHandler(silent)


@contextlib.contextmanager
def attempt(what: str, log: logging.Logger, tell: Callable[[str], None] | None = None) -> Iterator[None]:
    """One part of an ending: an error in it is logged, told in one line, and does not keep the next part from running.

    SystemExit too: rich raises it when the reader of a pipe has gone.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        log.warning("%s failed", what, exc_info=True)
        if tell is not None:
            tell(f"{what} failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
