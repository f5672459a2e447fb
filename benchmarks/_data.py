"""Files of public data sets, as they are distributed."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any


def rows_of(file: Path) -> list[dict[str, Any]]:
    """The rows of a JSON lines file or of one JSON array, packed or not."""
    text = (gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()).decode("utf-8")
    if text.lstrip().startswith("["):
        found: list[dict[str, Any]] = json.loads(text)
        return found
    return [json.loads(line) for line in text.split("\n") if line.strip()]
