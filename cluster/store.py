"""Process data on disk: Parquet shards that `datasets` reads, JSONL where a record holds values of any type."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from reasoning.records import Path as SearchPath
from reasoning.records import Record, Suite
from sandbox import Verdict

R = TypeVar("R", bound=Record)
ROW_GROUP = 1000
"""Records that are written together; more are never in memory."""

_STEP = pa.struct(
    [
        ("action", pa.int8()),
        ("header_ids", pa.list_(pa.int32())),
        ("token_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),
        ("text", pa.string()),
        ("weight_spans", pa.list_(pa.list_(pa.int32()))),
        ("value", pa.float64()),
        ("passed", pa.float64()),
        ("sampled", pa.float64()),
    ]
)
_PATH = pa.schema(
    [
        ("problem_id", pa.string()),
        ("tree_id", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("steps", pa.list_(_STEP)),
        ("program", pa.string()),
        ("verdict", pa.string()),
        ("compiles", pa.bool_()),
        ("tests_passed", pa.int32()),
        ("tests_total", pa.int32()),
        ("value", pa.float64()),
        ("temperature", pa.float64()),
    ]
)
_IDS = pa.list_(pa.int32())
_NUMBERS = pa.list_(pa.float64())
_SCHEMAS = {
    "paths": _PATH,
    "labels": pa.schema(
        [
            ("problem_id", pa.string()),
            ("token_ids", _IDS),
            ("ends", _IDS),
            ("targets", _NUMBERS),
            ("weights", _NUMBERS),
        ]
    ),
    "pairs": pa.schema(
        [
            ("problem_id", pa.string()),
            ("tree_id", pa.string()),
            ("prefix_ids", _IDS),
            ("chosen_ids", _IDS),
            ("rejected_ids", _IDS),
            ("chosen_value", pa.float64()),
            ("rejected_value", pa.float64()),
            ("margin", pa.float64()),
            ("weight", pa.float64()),
            ("chosen_header", pa.int32()),
            ("rejected_header", pa.int32()),
        ]
    ),
    "trajectories": pa.schema(
        [
            ("problem_id", pa.string()),
            ("token_ids", _IDS),
            ("loss_mask", pa.list_(pa.int8())),
            ("logprobs", _NUMBERS),
            ("advantages", _NUMBERS),
            ("reference_logprobs", _NUMBERS),
            ("outcome", pa.float64()),
            ("temperature", pa.float64()),
            ("weight_versions", _IDS),
        ]
    ),
    "generated": pa.schema([("problem_id", pa.string()), ("text", pa.string()), ("lost", pa.bool_())]),
}
"""Columns by kind. pyarrow would guess none for an empty shard, and a type of its own for lists that are all empty, so
that shards of one kind could not be read together."""


class ProcessDataStore:
    """D_process: one shard per stage under `root`; a shard is written whole or not at all."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write_paths(self, shard: str, paths: Iterable[SearchPath]) -> Path:
        """Write `<root>/paths/<shard>.parquet`; an existing shard is replaced."""
        return self.write_records("paths", shard, paths)

    def write_records(self, kind: str, shard: str, records: Iterable[Record]) -> Path:
        """Write `<root>/<kind>/<shard>.parquet` of records with plain fields: paths, labels, pairs, trajectories,
        generated. Raises as `shard` does.
        """
        with self.shard(kind, shard) as add:
            add(records)
        return self._place(kind, shard)

    @contextlib.contextmanager
    def shard(self, kind: str, shard: str) -> Iterator[Callable[[Iterable[Record]], None]]:
        """A shard that is written part by part: what is called with records, once or more. It takes the place of an
        existing one at the end, and leaves nothing where that is not reached.

        Raises ValueError for another kind, and where the records' fields are not the columns of their kind.
        """
        schema = _SCHEMAS.get(kind)
        if schema is None:
            raise ValueError(f"kind: got {kind!r}; use one of {', '.join(_SCHEMAS)}")
        target = self._place(kind, shard)
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = target.with_suffix(".partial")
        waiting: list[dict[str, object]] = []

        def flush() -> None:
            # A row group of no rows is one on which `datasets` fails even beside other shards.
            if waiting:
                writer.write_table(pa.Table.from_pylist(waiting, schema=schema))
                waiting.clear()

        def add(records: Iterable[Record]) -> None:
            for record in records:
                row = record.model_dump(mode="json")
                # pyarrow would drop what has no column and fill with nulls what has no value.
                if row.keys() != set(schema.names):
                    raise ValueError(f"{kind}: got fields {', '.join(row)}; use {', '.join(schema.names)}")
                waiting.append(row)
                if len(waiting) >= ROW_GROUP:
                    flush()

        try:
            with pq.ParquetWriter(scratch, schema) as writer:
                yield add
                flush()
            _into_place(scratch, target)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise

    def _place(self, kind: str, shard: str) -> Path:
        return self.root / kind / f"{shard}.parquet"

    def read_paths(self, shards: Sequence[str] | None = None) -> list[SearchPath]:
        """Paths of the named shards, or of all in the order of their names."""
        folder = self.root / "paths"
        names = shards if shards is not None else sorted(p.stem for p in folder.glob("*.parquet"))
        return [SearchPath.model_validate(_tuples(row)) for name in names for row in _rows(folder / f"{name}.parquet")]

    def read_records(self, kind: str, shard: str, record: type[R]) -> list[R]:
        return [record.model_validate(_tuples(row)) for row in _rows(self._place(kind, shard))]

    def write_suites(self, shard: str, suites: Iterable[Suite]) -> Path:
        """Write `<root>/suites/<shard>.jsonl`: expected values have any type, which columns do not."""
        target = self.root / "suites" / f"{shard}.jsonl"
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = target.with_suffix(".partial")
        scratch.write_text("".join(s.model_dump_json() + "\n" for s in suites), encoding="utf-8")
        _into_place(scratch, target)
        return target

    def read_suites(self, shard: str) -> list[Suite]:
        # Not splitlines: a text may hold the other line breaks of Unicode.
        lines = (self.root / "suites" / f"{shard}.jsonl").read_text(encoding="utf-8").split("\n")
        return [Suite.model_validate_json(line) for line in lines if line]


def _rows(path: Path) -> list[dict[str, object]]:
    return pq.read_table(path).to_pylist()


def _tuples(row: dict[str, object]) -> dict[str, object]:
    verdict = row.get("verdict")
    return {**row, "verdict": Verdict(verdict)} if verdict is not None else row


def _into_place(scratch: Path, target: Path) -> None:
    with open(scratch, "rb") as file:
        os.fsync(file.fileno())
    scratch.replace(target)
