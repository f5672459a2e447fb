"""`python -m sandbox`: judge, doctor, run and bench (serve is in test_fusion_server)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # starts processes all the time

ROOT = Path(__file__).resolve().parents[2]


def sandbox(*arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "sandbox", *arguments], capture_output=True, input=given, cwd=ROOT, timeout=120
    )


def test_judge_and_doctor(tmp_path: Path) -> None:
    source, cases, bad = tmp_path / "s.py", tmp_path / "cases.jsonl", tmp_path / "bad.jsonl"
    source.write_text("def f(x): return x * 2\nprint(input())")
    cases.write_text('{"kind": "stdio", "stdin": "a", "expected": "a"}\n\n')
    accepted = sandbox("judge", str(source), "--cases", str(cases))
    assert accepted.returncode == 0 and json.loads(accepted.stdout)["verdict"] == "accepted"
    cases.write_text('{"kind": "call", "args": [{"$tuple": [1]}], "expected": {"$tuple": [1, 2]}}\n')
    source.write_text("def f(x): return x * 2")
    rejected = sandbox("judge", str(source), "--cases", str(cases), "--entry-point", "f")
    assert rejected.returncode == 1 and json.loads(rejected.stdout)["cases"][0]["returned"] == '{"$tuple":[1,1]}'
    bad.write_text('{"kind": "stdio", "stdin": "a", "expected": "a"}\n{"kind": "stdio"}\n')
    for arguments in (
        ["judge", str(source), "--cases", str(bad)],
        ["judge", str(source), "--cases", str(cases)],
        ["judge", str(source), "--cases", str(tmp_path / "none")],
        ["judge", str(tmp_path / "none"), "--cases", str(cases)],
        ["judge", str(source), "--cases", str(cases), "--entry-point", "f", "--cpu-s", "-1"],
    ):
        done = sandbox(*arguments)
        assert done.returncode == 2 and done.stdout == b"" and done.stderr.count(b"\n") == 1, done
    assert b"line 2" in sandbox("judge", str(source), "--cases", str(bad)).stderr
    doctor = sandbox("doctor", "--json")
    assert doctor.returncode == 0 and json.loads(doctor.stdout)["best"]["level"] >= 1


def test_run_gives_the_program_its_input_and_the_caller_its_output(tmp_path: Path) -> None:
    source = tmp_path / "s.py"
    source.write_text(
        "import sys\ndata = sys.stdin.buffer.read()\nprint(len(data), 'ñ')\nprint('noise', file=sys.stderr)"
    )
    done = sandbox("run", str(source), given=b"\xff\0 any bytes")
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, "12 ñ\n", b"noise\n")


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        ("print('before')\n1/0", [], "runtime_error: ZeroDivisionError"),
        ("while True: pass", ["--cpu-s", "0.2"], "time_limit: more than 0.2 s of CPU time"),
        ("x = ' ' * 10 ** 9", ["--memory-mb", "64"], "memory_limit"),
        ("x = (", [], "compile_error"),
    ],
)
def test_run_says_how_a_program_failed(tmp_path: Path, text: str, options: list[str], says: str) -> None:
    source = tmp_path / "s.py"
    source.write_text(text)
    done = sandbox("run", str(source), *options)
    assert done.returncode == 1
    assert says in done.stderr.decode().splitlines()[-1]
    assert done.stdout == (b"before\n" if "before" in text else b"")


@pytest.mark.parametrize(
    "options",
    [["none.py"], ["{}", "--cpu-s", "-1"], ["{}", "--package", "no_such_package"], ["{}", "--memory-mb", "1"]],
)
def test_run_refuses_bad_input_in_one_line(tmp_path: Path, options: list[str]) -> None:
    source = tmp_path / "s.py"
    source.write_text("print(1)")
    done = sandbox("run", *[option.format(source) for option in options])
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1), done


def test_run_refuses_a_source_that_is_too_long(tmp_path: Path) -> None:
    source = tmp_path / "s.py"
    source.write_text("#" * 300_000)
    done = sandbox("run", str(source))
    assert done.returncode == 2 and b"at most" in done.stderr


def test_run_offers_a_package_that_is_asked_for(tmp_path: Path) -> None:
    source = tmp_path / "s.py"
    source.write_text("import numpy\nprint(numpy.arange(3).sum())")
    assert sandbox("run", str(source)).returncode == 1
    assert sandbox("run", str(source), "--package", "numpy").stdout == b"3\n"


def test_bench_measures_and_a_soak_leaves_nothing() -> None:
    done = sandbox("bench", "--quick", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["ratios"]) == {"over_bare_fork", "vs_cold_python", "checker_mode", "nth_test"}
    assert all(value > 0 for value in found["ratios"].values()) and found["runs_per_core_s"] > 1
    soaked = json.loads(sandbox("bench", "--soak", "1500", "--json").stdout)
    assert soaked["runs"] == 1500 and soaked["sandbox_errors"] == soaked["retries"] == 0
    assert soaked["processes_left"] == soaked["processes_grown"] == soaked["descriptors_grown"] == 0
    assert soaked["memory_grown_mb"] < 16
    assert sandbox("bench", "--soak", "0").returncode == 2


def test_judge_names_the_option_that_is_missing(tmp_path: Path) -> None:
    source, cases = tmp_path / "s.py", tmp_path / "c.jsonl"
    source.write_text("def f(x): return x")
    cases.write_text('{"kind": "assert", "code": "assert f(1) == 1", "entry_point": "f", "trust": "shared"}\n')
    for options, says in (
        ([], b"--allow-shared"),
        (["--allow-shared", "--threads", "0"], b"--threads is 0"),
        (["--stop", "now"], b"--stop"),
    ):
        done = sandbox("judge", str(source), "--cases", str(cases), *options)
        assert done.returncode == 2 and says in done.stderr and done.stderr.count(b"\n") == 1, done
    assert sandbox("judge", str(source), "--cases", str(cases), "--allow-shared", "--wall-s", "3").returncode == 0
    cases.write_text('{"kind": "call", "expected": 1}\n')
    done = sandbox("judge", str(source), "--cases", str(cases))
    assert done.returncode == 2 and b"line 1" in done.stderr and b"--entry-point" in done.stderr


def test_a_package_that_no_cell_can_load(tmp_path: Path) -> None:
    """One that starts a thread when it is imported; another that fails."""
    source = tmp_path / "s.py"
    source.write_text("print(1)")
    threads = "import threading, time\nthreading.Thread(target=time.sleep, args=(9,), daemon=True).start()"
    made = {"threaded_package": threads, "broken_package": "raise RuntimeError('no')"}
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    for name, text in made.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(text)
        done = subprocess.run(
            [sys.executable, "-P", "-m", "sandbox", "run", str(source), "--package", name],
            capture_output=True, env=environment, stdin=subprocess.DEVNULL, timeout=120,
        )  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1), done
        assert name.encode() in done.stderr and b"isolation" not in done.stderr


def test_an_interruption_and_closed_streams(tmp_path: Path) -> None:
    source = tmp_path / "s.py"
    source.write_text("import time\nprint(1)\ntime.sleep(9)")
    process = subprocess.Popen(
        [sys.executable, "-m", "sandbox", "run", str(source)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert process.stderr is not None and process.stderr.read() == b"sandbox: interrupted\n"
    source.write_text("print(1)")
    for redirection, status in (("<&-", 0), (">&-", 0), (">/dev/full", 3)):
        command = f"{sys.executable} -m sandbox run {source} {redirection}"
        done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, timeout=60, stdin=subprocess.DEVNULL)
        assert done.returncode == status and b"Traceback" not in done.stderr, (redirection, done)
