"""What must be true before anything expensive starts: memory, disk, problems that hold, references that pass."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import psutil
from pydantic import ValidationError

from cluster.config import RunConfig
from reasoning.errors import InputError
from reasoning.problems import BadRow, bundled, from_rows, load_jsonl, with_held_out
from reasoning.records import Problem
from sandbox import LocalPool, SandboxUnavailableError, Submission, Verdict

MIN_MEMORY_GB = 7.0
"""What the smallest run was seen to need, engine and learner together; the laptop budget peaks higher."""
MIN_DISK_GIB = 4.0
MBPP_HUB = "google-research-datasets/mbpp"


def require_memory(model: Path) -> None:
    """Raises InputError where the run would be killed for memory: a floor, plus the learner's 18 bytes a parameter."""
    weights = sum(f.stat().st_size for f in model.glob("*.safetensors"))
    need = max(MIN_MEMORY_GB, 4.5 + 10 * weights / 1e9)
    free = psutil.virtual_memory().available / 1e9
    if free < need:
        legal = f"a machine with {need:.0f} GB of free memory, or a smaller model"
        raise InputError("memory", f"{free:.1f} GB free", legal, f"{model.name} needs more")


def load_problems(config: RunConfig, on_bad: BadRow) -> list[Problem]:
    """The problems of the run, at least one of them held out. Raises InputError."""
    ids = config.ids
    skip = on_bad if config.skip_bad_rows else None
    if config.problems == "bundled":
        problems = bundled()
        if ids:
            wanted = set(ids)
            problems = [p for p in problems if wanted & {p.id, p.id.split("/")[-1]}]
            missing = wanted - {i for p in problems for i in (p.id, p.id.split("/")[-1])}
            if missing:
                raise InputError(
                    "ids", ",".join(sorted(missing)[:5]), "ids of bundled problems (bundled/...)", "not found"
                )
    elif config.problems.endswith((".jsonl", ".json")) or os.path.exists(config.problems):  # noqa: PTH110
        problems = load_jsonl(Path(config.problems), ids, skip)
    elif config.problems == "mbpp" or "/" in config.problems:
        problems = _from_hub(MBPP_HUB if config.problems == "mbpp" else config.problems, ids, skip)
    else:
        raise InputError("problems", config.problems, "bundled, mbpp, an existing FILE.jsonl, or a hub id (owner/name)")
    return with_held_out(problems)


def _from_hub(name: str, ids: tuple[str, ...], on_bad: BadRow | None) -> list[Problem]:
    from datasets import load_dataset

    try:
        splits = load_dataset(name)
    except Exception as error:  # the hub's client raises many kinds; the user needs one sentence
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise InputError(
            "problems", name, "bundled, an existing FILE.jsonl, or a hub id that can be reached", reason
        ) from error
    rows = [row for split in splits.values() for row in split]
    return from_rows(enumerate(rows, start=1), name, ids, on_bad)


def check_references(problems: list[Problem], config: RunConfig) -> None:
    """Every reference passes every test of its problem, in the sandbox.

    Raises InputError naming the first problem that fails and how, or where no isolation is available.
    """
    failures = asyncio.run(_check(problems, config))
    if failures:
        problem, verdict = failures[0]
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        legal = "a problem whose references pass its own tests, or other ids"
        raise InputError("problems", problem, legal, f"its reference gets {verdict}{more}")


async def _check(problems: list[Problem], config: RunConfig) -> list[tuple[str, str]]:
    failures: dict[str, str] = {}
    limits = config.sandbox.limits()
    try:
        async with LocalPool(min_level=config.sandbox.min_level) as pool:

            async def one(problem: Problem, reference: str) -> None:
                cases = [t.case for t in problem.tests]
                try:
                    submission = Submission(
                        source=reference,
                        entry_point=problem.entry_point,
                        cases=cases,
                        limits=limits,
                        stop="first_failure",
                    )
                except ValidationError as error:  # a source that is too long
                    failures.setdefault(problem.id, f"refused: {error.errors()[0]['msg']}")
                    return
                result = await pool.judge(submission)
                if result.verdict is not Verdict.ACCEPTED:
                    case = next(i for i, r in enumerate(result.cases, 1) if r.verdict is not Verdict.ACCEPTED)
                    detail = result.cases[case - 1].detail
                    failures.setdefault(
                        problem.id, f"{result.verdict} on test {case}" + (f": {detail}" if detail else "")
                    )

            await asyncio.gather(*[one(p, r) for p in problems for r in p.references])
    except SandboxUnavailableError as error:
        legal = "a machine with seccomp (Linux 4.14 or newer)"
        raise InputError("sandbox.min_level", config.sandbox.min_level, legal, str(error)) from None
    return [(p.id, failures[p.id]) for p in problems if p.id in failures]
