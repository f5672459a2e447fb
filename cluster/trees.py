"""The trees of one search over many problems: what is to be searched, what its event logs say, and what to write down.

Everything is read back from the logs, so that a search that was killed and gone on with ends in the same files.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.run_dir import RunDir
from reasoning.errors import InputError
from reasoning.event_log import Ended, EventLogError, decode
from reasoning.export import complete_solutions
from reasoning.labels import step_labels
from reasoning.pairs import step_pairs
from reasoning.records import Path as SearchPath
from reasoning.records import Problem
from reasoning.search import SearchSettings
from reasoning.tree import SearchTree

if TYPE_CHECKING:  # Ray must not be imported before its settings are made
    from actors.rollout import TreeResult

SHARD = "search"
PAIRS_PER_PROBLEM = 64
_LONGEST_NAME = 100
_ODD = re.compile(r"[^A-Za-z0-9_.+=@-]")


@dataclass(frozen=True, slots=True)
class PlannedTree:
    """One problem to search. `name`: of its files, without suffix; `log`: its event log."""

    problem: Problem
    name: str
    seed: int
    log: Path

    @property
    def tree_id(self) -> str:
        return f"{SHARD}/{self.problem.id}"


@dataclass(frozen=True, slots=True)
class TreeReport:
    """What a tree came to. Counts as in `SearchTree`; `programs`: paths that end in a judged program.

    `tokens`: sampled; `seconds`: on the clock since it began or went on; `reason`: why it ended, "" where it has not.
    """

    problem_id: str
    solved: bool
    tokens: int
    expansions: int
    paths: int
    programs: int
    duplicates: int
    lost: int
    pruned: int
    seconds: float
    reason: str

    @property
    def finished(self) -> bool:
        return bool(self.reason)


def plan(problems: Sequence[Problem], seed: int, folder: Path) -> list[PlannedTree]:
    """One tree per problem, in the order of their ids. A tree's own seed depends on `seed` and the id alone."""
    names = file_names([p.id for p in problems])
    return [
        PlannedTree(p, names[p.id], random.Random(f"{seed}:{p.id}").randrange(2**31), folder / f"{names[p.id]}.jsonl")
        for p in sorted(problems, key=lambda p: p.id)
    ]


def file_names(ids: Iterable[str]) -> dict[str, str]:
    """A file name, without suffix, for each id: the id with "/" and odd characters as "-".

    Where that is too long, hidden or the same for several ids (also but for upper and lower case), a hash of the id is
    added.
    """
    plain = {i: _ODD.sub("-", i)[:_LONGEST_NAME] for i in ids}
    taken: dict[str, int] = {}
    for name in plain.values():
        taken[name.lower()] = taken.get(name.lower(), 0) + 1
    return {
        i: f"tree-{name}-{hashlib.sha256(i.encode()).hexdigest()[:8]}"
        if taken[name.lower()] > 1 or name.startswith(".") or len(i) > _LONGEST_NAME
        else name
        for i, name in plain.items()
    }


def digest(problems: Iterable[Problem]) -> str:
    """A hash of the problems, whatever their order: it tells whether they are what they were."""
    whole = hashlib.sha256()
    for text in sorted(p.model_dump_json() for p in problems):
        whole.update(text.encode("utf-8", "surrogatepass") + b"\n")
    return whole.hexdigest()


# --- from the logs ---


def read_tree(planned: PlannedTree) -> tuple[SearchTree, Ended | None] | None:
    """The tree as its log has it, with its last event where it came to its end; None before the first whole line.

    Raises EventLogError for a log that is none, OSError where it cannot be read.
    """
    events = decode(planned.log.read_bytes()) if planned.log.exists() else []
    if not events:
        return None
    return SearchTree.replay(events), last if isinstance(last := events[-1], Ended) else None


def read_reports(trees: Iterable[PlannedTree], settings: SearchSettings) -> dict[str, TreeReport]:
    """What the logs that are there say, by problem id.

    Raises InputError (field "resume") naming a log that is broken, or of a search with other settings or another seed.
    """
    reports: dict[str, TreeReport] = {}
    for planned in trees:
        try:
            found = read_tree(planned)
            if found is not None:
                _require_same(planned, settings, found[0])
                reports[planned.problem.id] = report_of_tree(*found)
        except EventLogError as error:
            legal = "event logs as this search left them; remove the file to search its problem anew"
            raise InputError("resume", str(planned.log), legal, str(error)) from None
        except OSError as error:
            legal = "event logs that can be read"
            raise InputError("resume", str(planned.log), legal, error.strerror or str(error)) from error
    return reports


def _require_same(planned: PlannedTree, settings: SearchSettings, tree: SearchTree) -> None:
    ours = (planned.tree_id, planned.problem.id, planned.seed, settings)
    theirs = (tree.id, tree.problem_id, tree.seed, tree.settings)
    for name, mine, other in zip(("tree id", "problem id", "seed", "settings"), ours, theirs, strict=True):
        if mine != other:
            raise EventLogError(f"it is of another search: its {name} differs")


def report_of_tree(tree: SearchTree, ended: Ended | None) -> TreeReport:
    """What a replayed tree came to."""
    paths = tree.paths()
    return TreeReport(
        problem_id=tree.problem_id,
        solved=any(p.solved for p in paths),
        tokens=tree.tokens,
        expansions=tree.expansions,
        paths=len(paths),
        programs=_programs(paths),
        duplicates=tree.duplicates,
        lost=tree.infra_errors,
        pruned=tree.pruned,
        seconds=ended.seconds if ended else 0.0,
        reason=ended.reason if ended else "",
    )


def report_of_result(result: TreeResult) -> TreeReport:
    """What a tree came to that a rollout worker has just finished."""
    return TreeReport(
        problem_id=result.problem_id,
        solved=result.solved,
        tokens=result.tokens,
        expansions=result.expansions,
        paths=len(result.paths),
        programs=_programs(result.paths),
        duplicates=result.duplicates,
        lost=result.infra_errors,
        pruned=result.pruned,
        seconds=result.seconds,
        reason=result.reason,
    )


def _programs(paths: Iterable[SearchPath]) -> int:
    return sum(p.program is not None for p in paths)


# --- which worker searches what ---


class Fewest:
    """Sends each tree to the worker that has the fewest; among equals to the first."""

    def __init__(self, workers: int) -> None:
        self.load = [0] * workers
        self._at: dict[str, int] = {}

    def take(self, tree_id: str) -> int:
        """The worker for a tree."""
        worker = min(range(len(self.load)), key=lambda i: (self.load[i], i))
        self.load[worker] += 1
        self._at[tree_id] = worker
        return worker

    def give_back(self, tree_id: str) -> None:
        """The tree has ended."""
        self.load[self._at.pop(tree_id)] -= 1


# --- out ---


def write_outputs(run_dir: RunDir, trees: Sequence[PlannedTree]) -> list[TreeReport]:
    """Paths, labels and pairs of all trees (shard "search") and `solutions/`, from the event logs; what is there is
    replaced. Returns what each tree came to.

    Raises EventLogError for a log that is none, OSError where the disk refuses.
    """
    from cluster.store import ProcessDataStore

    store = ProcessDataStore(run_dir.data)
    paths: list[SearchPath] = []
    reports = []
    scratch = run_dir.stage_dir("solutions")
    for planned, tree, ended in _trees(trees):
        own = tree.paths()
        paths += own
        solutions = complete_solutions(planned.problem, own)
        (scratch / f"{planned.name}.json").write_text(json.dumps(solutions, indent=1) + "\n", encoding="utf-8")
        reports.append(report_of_tree(tree, ended))
    store.write_paths(SHARD, paths)
    store.write_records("labels", SHARD, step_labels(paths))
    store.write_records("pairs", SHARD, step_pairs(paths, PAIRS_PER_PROBLEM))
    run_dir.publish_dir(scratch, "solutions")
    return reports


def _trees(trees: Iterable[PlannedTree]) -> Iterator[tuple[PlannedTree, SearchTree, Ended | None]]:
    """One at a time: thousands of trees need not be in memory together."""
    for planned in trees:
        found = read_tree(planned)
        if found is not None:
            yield planned, *found


def as_rows(reports: Iterable[TreeReport]) -> list[dict[str, object]]:
    """Reports as JSON objects."""
    return [asdict(report) for report in reports]
