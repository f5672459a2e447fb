"""The trees of one search over many problems: what is to be searched, what its event logs say, and what to write down.

Everything is read back from the logs, so that a search that was killed and gone on with ends in the same files.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.run_dir import RunDir
from reasoning.errors import InputError
from reasoning.event_log import Ended, Event, EventLogError, decode, opening, require_same
from reasoning.export import complete_solutions
from reasoning.labels import solved_paths, step_labels
from reasoning.nodes import TreeReport
from reasoning.pairs import step_pairs
from reasoning.records import Problem, Suite
from reasoning.search import SearchSettings
from reasoning.tree import SearchTree

if TYPE_CHECKING:  # Ray must not be imported before its settings are made
    from actors.rollout import TreeResult

SHARD = "search"
PAIRS_PER_PROBLEM = 64
TREE_MARGIN_S = 300.0
"""How much longer than its own limit a tree may take to come back."""
_LONGEST_NAME = 100
_ODD = re.compile(r"[^A-Za-z0-9_.+=@-]")


@dataclass(frozen=True, slots=True)
class PlannedTree:
    """One problem to search. `shard`: of the search it belongs to; `name`: of its files, without suffix; `log`: its
    event log."""

    problem: Problem
    shard: str
    name: str
    seed: int
    log: Path

    @property
    def tree_id(self) -> str:
        return f"{self.shard}/{self.problem.id}"


def plan(problems: Sequence[Problem], seed: int, run_dir: RunDir, shard: str = SHARD) -> list[PlannedTree]:
    """One tree per problem, in the order of their ids. A tree's own seed depends on `seed`, shard and id alone."""
    names, folder = file_names([p.id for p in problems]), run_dir.trees / shard
    return [
        PlannedTree(p, shard, name, random.Random(f"{seed}:{shard}:{p.id}").randrange(2**31), folder / f"{name}.jsonl")
        for p in sorted(problems, key=lambda p: p.id)
        for name in (names[p.id],)
    ]


def file_names(ids: Iterable[str]) -> dict[str, str]:
    """A file name, without suffix, for each id: the id with "/" and odd characters as "-".

    Where that is too long, hidden or the same for several ids (also but for upper and lower case), or looks like such a
    name, it becomes `tree-NAME-HASH`.
    """
    plain = {i: _ODD.sub("-", i)[:_LONGEST_NAME] for i in ids}
    taken: dict[str, int] = {}
    for name in plain.values():
        taken[name.lower()] = taken.get(name.lower(), 0) + 1
    return {
        i: f"tree-{name}-{hashlib.sha256(i.encode()).hexdigest()[:8]}"
        if taken[name.lower()] > 1 or name.startswith((".", "tree-")) or len(i) > _LONGEST_NAME
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


def read_tree(planned: PlannedTree) -> tuple[SearchTree, TreeReport] | None:
    """The tree as its log has it, and what it came to; None before the first whole line.

    Raises EventLogError for a log that is none, OSError where it cannot be read.
    """
    events = _events(planned)
    return _replayed(events) if events else None


def read_reports(trees: Iterable[PlannedTree], settings: SearchSettings) -> dict[str, TreeReport]:
    """What the logs that are there say, by problem id.

    Raises InputError (field "resume") naming a log that is broken, or of a search with other settings or another seed.
    """
    reports: dict[str, TreeReport] = {}
    for planned in trees:
        try:
            if events := _events(planned):
                _require_same(planned, settings, events)
                reports[planned.problem.id] = _replayed(events)[1]
        except EventLogError as error:
            legal = "event logs as this search left them; remove the file to search its problem anew"
            raise InputError("resume", str(planned.log), legal, str(error)) from None
        except OSError as error:
            legal = "event logs that can be read"
            raise InputError("resume", str(planned.log), legal, error.strerror or str(error)) from error
    return reports


def set_aside(
    trees: Iterable[PlannedTree],
    settings: SearchSettings,
    opened_with: Callable[[PlannedTree], Mapping[str, Any]] = lambda _: {},
) -> list[Path]:
    """Move logs that a search with these settings cannot go on with out of its way; returns where they are now.

    `opened_with`: what else the opening of a tree's log has to say (prompt, tests). Raises OSError where the disk
    refuses.
    """
    moved = []
    for planned in trees:
        try:
            if events := _events(planned):
                _require_same(planned, settings, events, **opened_with(planned))
                SearchTree.replay(events)
        except EventLogError:
            number = 1
            while (target := planned.log.with_suffix(f".{number}.old")).exists():
                number += 1
            moved.append(planned.log.rename(target))
    return moved


def _events(planned: PlannedTree) -> list[Event]:
    return decode(planned.log.read_bytes()) if planned.log.exists() else []


def _replayed(events: Sequence[Event]) -> tuple[SearchTree, TreeReport]:
    tree, last = SearchTree.replay(events), events[-1]
    return tree, tree.report(last.reason, last.seconds) if isinstance(last, Ended) else tree.report()


def _require_same(planned: PlannedTree, settings: SearchSettings, events: Sequence[Event], **more: Any) -> None:
    require_same(
        opening(events), tree_id=planned.tree_id, problem_id=planned.problem.id, seed=planned.seed,
        settings=settings.model_dump(), **more,
    )  # fmt: skip


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


def grow(
    workers: Sequence[Any],
    trees: Sequence[PlannedTree],
    suites: Mapping[str, Suite],
    settings: SearchSettings,
    in_flight: int,
    on_result: Callable[[TreeResult], None],
    on_tick: Callable[[], None],
) -> None:
    """Search the trees on the rollout workers, at most `in_flight` at a time; see `flow.stream`. `suites`: what judges
    the programs, by problem id."""
    from cluster import flow

    routes = Fewest(len(workers))

    def call(planned: PlannedTree) -> Callable[[], Any]:
        def start() -> Any:
            return workers[routes.take(planned.tree_id)].search.remote(
                planned.tree_id, planned.problem, suites[planned.problem.id], settings, planned.seed, str(planned.log)
            )

        return start

    def end(result: TreeResult) -> None:
        routes.give_back(result.tree_id)
        on_result(result)

    what = trees[0].shard if trees else SHARD
    flow.stream(map(call, trees), in_flight, settings.seconds + TREE_MARGIN_S, what, end, on_tick)


# --- out ---


def write_outputs(run_dir: RunDir, trees: Sequence[PlannedTree]) -> list[TreeReport]:
    """Paths, labels and pairs of all trees (shard "search") and `solutions/`, from the event logs; what is there is
    replaced. Returns what each tree came to.

    Raises EventLogError for a log that is none, OSError where the disk refuses.
    """
    from cluster.store import ProcessDataStore

    store = ProcessDataStore(run_dir.data)
    reports = []
    scratch = run_dir.stage_dir("solutions")
    with (
        store.shard("paths", SHARD) as paths,
        store.shard("labels", SHARD) as labels,
        store.shard("pairs", SHARD) as pairs,
    ):
        for planned, tree, report in _trees(trees):
            own = tree.paths()
            paths(own)
            labels(step_labels(own))
            pairs(step_pairs(own, PAIRS_PER_PROBLEM))
            solutions = complete_solutions(planned.problem, own)
            (scratch / f"{planned.name}.json").write_text(json.dumps(solutions, indent=1) + "\n", encoding="utf-8")
            for path in solved_paths(own, 1):
                (scratch / f"{planned.name}.py").write_text(f"{path.program}\n", encoding="utf-8")
            reports.append(report)
    run_dir.publish_dir(scratch, "solutions")
    return reports


def _trees(trees: Iterable[PlannedTree]) -> Iterator[tuple[PlannedTree, SearchTree, TreeReport]]:
    """One at a time: thousands of trees need not be in memory together."""
    for planned in trees:
        found = read_tree(planned)
        if found is not None:
            yield planned, *found


def metrics(reports: Sequence[TreeReport], seconds: float, earlier: Iterable[TreeReport] = ()) -> dict[str, float]:
    """What is logged of a search that took `seconds`, not counting what it took to get to `earlier`."""
    tokens, programs = sum(r.tokens for r in reports), sum(r.programs for r in reports)
    before = list(earlier)
    return {
        "search/solved": sum(r.solved for r in reports),
        "search/problems": len(reports),
        "search/tokens": tokens,
        "search/tokens_per_s": (tokens - sum(r.tokens for r in before)) / seconds,
        "search/paths": sum(r.paths for r in reports),
        "search/duplicates": sum(r.duplicates for r in reports),
        "search/infra_errors": sum(r.lost + r.unscored for r in reports),
        "search/pruned": sum(r.pruned for r in reports),
        "sandbox/programs_per_s": (programs - sum(r.programs for r in before)) / seconds,
    }


def as_rows(reports: Iterable[TreeReport]) -> list[dict[str, object]]:
    """Reports as JSON objects."""
    return [asdict(report) for report in reports]
