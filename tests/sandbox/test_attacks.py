"""Hostile programs: each gets the verdict it deserves, at every level, and leaves no trace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace

import pytest
from attacks import COVERED_BY_TESTS, NUMBERS, Attack, covers
from attacks_forging import FORGING, SEARCHES, SECRET
from attacks_host import HOST_ATTACKS, SECRETS
from attacks_resources import RESOURCES
from sandbox_bench import Bench
from surroundings import PROJECT, SECRET_VARIABLE, Surroundings, marked

from sandbox import CaseResult, SandboxUnavailableError, Verdict

pytestmark = pytest.mark.slow  # starts processes all the time

ATTACKS = (*FORGING, *HOST_ATTACKS, *RESOURCES)
# Two endless programs are tried at once; the others take their time where there is more of it.
TRIED_AT_ONCE = ("busy loop", "sleep")


def is_slow(attack: Attack) -> bool:
    """Whether it runs until its limit, or is long otherwise."""
    return attack.slow or (Verdict.TIME_LIMIT in attack.verdicts and attack.name not in TRIED_AT_ONCE)


def params(attacks: tuple[Attack, ...]) -> list[object]:
    """One parameter each, named by number and name."""
    return [pytest.param(a, id=str(a), marks=[pytest.mark.slow] if is_slow(a) else []) for a in attacks]


def strike(bench: Bench, attack: Attack, around: Surroundings) -> tuple[CaseResult, list[str]]:
    """Run an attack; its result, and the harm it has done."""
    before = around.before((bench.cell, Bench.made))
    entry_point = "f" if attack.kind == "call" else None
    suite = bench.judge(attack.program(around.facts), attack.case(), limits=attack.limits, entry_point=entry_point)
    result = suite.cases[0]
    said = result.stdout_head + result.stderr_tail + (result.returned or "")
    return result, around.harm(before) + marked(said, around.token)


def test_every_number_is_covered() -> None:
    import test_attacks_by_name  # noqa: F401
    import test_attacks_layers  # noqa: F401 - their tests register themselves
    import test_pool  # noqa: F401

    assert {attack.number for attack in ATTACKS} | set(COVERED_BY_TESTS) == NUMBERS
    assert len({str(attack) for attack in ATTACKS}) == len(ATTACKS)


@pytest.mark.parametrize("attack", params(ATTACKS))
def test_attack(bench: Bench, around: Surroundings, attack: Attack) -> None:
    cell, retries = bench.cell, bench.pool.stats().retries
    result, harm = strike(bench, attack, around)
    assert result.verdict in attack.allowed(bench.pool.isolation.level), result
    assert not harm
    # The same zygote goes on, and the run that was judged was the first one.
    assert bench.script("print('ok')").verdict is Verdict.ACCEPTED
    assert bench.cell is cell and bench.pool.stats().retries == retries


@covers(99)
def test_levels_agree(around: Surroundings) -> None:
    """Every program has one verdict, wherever it runs, as far as it needs no files."""
    verdicts: dict[str, dict[int, Verdict]] = {}
    for level in (3, 2, 1):
        try:
            bench = Bench(level=level)
        except SandboxUnavailableError:
            continue
        try:
            for attack in ATTACKS:
                # Where one verdict alone is right, `test_attack` has said it for every level.
                if len(attack.verdicts) > 1 and attack.needs_files is None:
                    verdicts.setdefault(str(attack), {})[level] = strike(bench, attack, around)[0].verdict
        finally:
            bench.close()
    assert {name: found for name, found in verdicts.items() if len(set(found.values())) > 1} == {}


@pytest.mark.skipif(os.getuid() != 0, reason="some of the harm takes root")
@pytest.mark.parametrize("attack", [pytest.param(a, id=str(a)) for a in ATTACKS if a.naked])
def test_the_harm_would_be_seen(around: Surroundings, attack: Attack) -> None:
    """Without any sandbox the attacks succeed, and the probes notice it."""
    assert naked_harm(around, attack.program(around.facts))


def test_no_harm_is_seen_where_there_is_none(around: Surroundings) -> None:
    assert not naked_harm(around, f"HOST = {around.facts!r}\nprint('ok')")


def naked_harm(around: Surroundings, program: str) -> list[str]:
    """What a program does as an ordinary process."""
    before = around.look()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, "-c", program], env={SECRET_VARIABLE: around.token}, stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        harm = around.harm(before)
        output.seek(0)
        return harm + marked(output.read().decode(errors="replace"), around.token)


@pytest.mark.parametrize(
    "attack", [pytest.param(a, id=str(a)) for a in SEARCHES if a.name != "memory file scan in a call"]
)
def test_searches_find_what_is_there(best: Bench, attack: Attack, around: Surroundings) -> None:
    """Given the expected value as an argument, a search returns it: where it returns another, there is none."""
    result, _ = strike(best, replace(attack, args=(SECRET,)), around)
    assert result.verdict is Verdict.ACCEPTED, result


OWNER = """
import json, sys
from sandbox_bench import Bench
bench = Bench(level=int(sys.argv[1]))
for source in json.load(sys.stdin):
    output = bench.stdout(source)
    print(output.verdict, output.stdout, output.stderr_tail)
bench.close()
"""


def test_secrets_of_the_owner_stay_there(bench: Bench, around: Surroundings) -> None:
    """The process that owns the pool was started with a secret: there it also lies where the kernel keeps it."""
    code = f"import sys\nsys.path.insert(0, {os.path.dirname(__file__)!r})\n{OWNER}"  # noqa: PTH120
    done = subprocess.run(
        [sys.executable, "-c", code, str(bench.pool.isolation.level)],
        input=json.dumps([attack.program(around.facts) for attack in SECRETS]), capture_output=True, text=True,
        timeout=60, cwd=PROJECT, env={**os.environ, SECRET_VARIABLE: around.token, "PYTHONPATH": str(PROJECT)},
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.count("_error") >= 20, done
    assert around.token not in done.stdout
