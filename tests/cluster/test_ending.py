"""How a run ends: every part of the shutdown is tried, what fails is told and recorded, and the exit code says it."""

import errno
import io
import logging
import signal
import sys
from types import SimpleNamespace

import pytest
import ray
from rich.console import Console

from cluster import job, report, summary, train, workers
from cluster.config import load
from cluster.driver_log import attempt, driver_log
from cluster.report import RunSummary
from cluster.run_dir import RunDir
from cluster.stop import EXIT_INTERRUPTED, Interrupted, Stop
from cluster.workers import Workers


class Remote:
    """An actor's method, called in this process."""

    def __init__(self, call):
        self.remote = call


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run whose stages and workers are stand-ins: its context, and a call that runs it to its end."""
    directory = RunDir.create(tmp_path / "run")
    told, finished, closed = io.StringIO(), [], []
    console = Console(file=told, width=200)
    context = SimpleNamespace(
        state={},
        dir=directory,
        measure_memory=lambda: None,
        workers=SimpleNamespace(
            ray_is_gone=False, rollouts=[], tracker=SimpleNamespace(finish=Remote(finished.append))
        ),
    )
    result = RunSummary(run_dir=str(directory.path), model="m", seed=0, rounds=1)
    monkeypatch.setattr(ray, "get", lambda value, timeout: value)
    monkeypatch.setattr(summary, "summarize", lambda *_: result)
    monkeypatch.setattr(job, "start_ray", lambda run_id: "Ray: none")
    monkeypatch.setattr(train, "_prepare", lambda *_: (context, ""))
    monkeypatch.setattr(train, "_loop", lambda context: None)
    monkeypatch.setattr(Workers, "close", lambda self: closed.append(True))

    def end(stop=None):
        config = load("tiny")
        with driver_log(directory.logs / "driver.log"):
            code = train._run(config, directory, tmp_path, [], console, stop or Stop())
        assert closed == [True]
        return code

    log = directory.logs / "driver.log"
    ways = {"end": end, "log": log.read_text, "console": console, "told": told}
    return SimpleNamespace(context=context, finished=finished, closed=closed, dir=directory, **ways)


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def on(console, fail):
    """`report.render` that fails on this console; report.txt is made on another."""
    render = report.render
    return lambda result, where: fail() if where is console else render(result, where)


def test_a_signal_that_ray_hears_while_it_starts(run, monkeypatch):
    def start(run_id):
        sys.exit(signal.SIGTERM)  # its handler does this

    monkeypatch.setattr(job, "start_ray", start)
    assert run.end() == 130
    assert "interrupted by SIGTERM" in run.told.getvalue()


def interrupted(stop):
    def loop(context):
        stop.signal = "SIGTERM"
        raise Interrupted(stop.signal)

    return loop


def test_a_run_that_ends_well(run):
    assert run.end() == 0
    assert run.finished == [0]
    assert run.dir.report.exists()
    assert "Run finished" in run.told.getvalue()
    assert run.log() == ""


@pytest.mark.parametrize(
    "place, code",
    [("measure", 0), ("state", 1), ("summarize", 1), ("write", 1), ("render", 0), ("finish", 0)],
)
def test_trouble_in_one_part_of_the_ending(run, monkeypatch, place, code):
    match place:
        case "measure":
            run.context.measure_memory = full
        case "state":
            monkeypatch.setattr(RunDir, "write_state", full)
        case "finish":
            run.context.workers.tracker = SimpleNamespace(finish=Remote(full))
        case "render":
            monkeypatch.setattr(report, "render", on(run.console, full))
        case _:
            monkeypatch.setattr({"summarize": summary, "write": report}[place], place, full)
    assert run.end() == code
    told = [line for line in run.told.getvalue().splitlines() if "failed" in line]
    assert len(told) == 1
    assert "OSError: [Errno 28] No space left on device" in told[0]
    assert "No space left on device" in run.log()
    if place != "finish":
        assert run.finished == [code]
    if place in {"measure", "state", "finish"}:
        assert run.dir.report.exists()
    if place not in {"summarize", "render"}:
        assert "Run finished" in run.told.getvalue()


def test_an_interrupted_run_stays_one_when_the_disk_is_full(run, monkeypatch):
    stop = Stop()
    monkeypatch.setattr(train, "_loop", interrupted(stop))
    monkeypatch.setattr(RunDir, "write_state", full)
    monkeypatch.setattr(report, "write", full)
    assert run.end(stop) == EXIT_INTERRUPTED
    assert "interrupted by SIGTERM" in run.told.getvalue()
    assert run.finished == [EXIT_INTERRUPTED]


def test_an_error_is_not_hidden_by_trouble_at_the_end(run, monkeypatch):
    def loop(context):
        raise ArithmeticError("the real cause")

    monkeypatch.setattr(train, "_loop", loop)
    monkeypatch.setattr(summary, "summarize", full)
    with pytest.raises(ArithmeticError, match="the real cause"):
        run.end()
    assert run.closed == [True]
    assert run.finished == [1]
    assert "the real cause" in run.log()


def test_a_reader_of_the_output_that_has_gone_does_not_change_the_ending(run, monkeypatch):
    def gone(*_, **__):
        raise SystemExit(1)

    def loop(context):
        run.console.print = gone

    monkeypatch.setattr(train, "_loop", loop)
    monkeypatch.setattr(report, "render", on(run.console, gone))
    run.context.measure_memory = full
    assert run.end() == 0
    assert run.finished == [0]


def test_closing_the_workers_goes_on_and_records_what_fails(tmp_path, monkeypatch):
    class Broken(Workers):
        def note_processes(self):
            raise OSError("no /proc")

        def _session(self):
            return tmp_path / "session"

    class Learner:
        def close(self):
            raise TimeoutError("the learner hangs")

    ended = []
    (tmp_path / "session" / "logs").mkdir(parents=True)
    (tmp_path / "session" / "logs" / "worker-1.out").write_text("said", encoding="utf-8")
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "wait", full)
    monkeypatch.setattr(ray, "kill", full)
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append("ray"))
    monkeypatch.setattr(workers, "end_all_below", lambda known: ended.append("processes"))
    broken = Broken(load("tiny"), tmp_path, tmp_path)
    broken._learner, broken.tracker = Learner(), object()
    with driver_log(tmp_path / "driver.log"):
        broken.close()
    assert ended == ["ray", "processes"]
    assert (tmp_path / "worker-1.out").read_text(encoding="utf-8") == "said"
    assert not (tmp_path / "session").exists()
    log = (tmp_path / "driver.log").read_text(encoding="utf-8")
    for what in ("no /proc", "No space left", "the learner hangs", "ending an actor", "WARNING cluster.workers"):
        assert what in log


def test_warnings_go_to_the_file_and_not_to_the_terminal(tmp_path, capfd):
    with driver_log(tmp_path / "driver.log"):
        with attempt("a part", logging.getLogger("cluster.any")):
            raise ValueError("why")
    assert "ValueError: why" in (tmp_path / "driver.log").read_text(encoding="utf-8")
    assert capfd.readouterr() == ("", "")


def test_a_full_disk_does_not_break_the_logging(capfd):
    with driver_log("/dev/full"):
        logging.getLogger("cluster.any").warning("lost")
    assert capfd.readouterr() == ("", "")
