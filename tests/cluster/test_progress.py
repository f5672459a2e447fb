"""The display: what its lines say, that it is never silent, and that it never ends a run."""

from __future__ import annotations

import io
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from rich.console import Console

from cluster.progress import ProgressDisplay, format_duration, format_field


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Lines(io.StringIO):
    """A captured log."""

    @property
    def lines(self) -> list[str]:
        return self.getvalue().splitlines()


@pytest.fixture
def out() -> Lines:
    return Lines()


@pytest.fixture(autouse=True)
def threads_end() -> Iterator[None]:
    before = threading.active_count()
    yield
    patience = time.monotonic() + 5  # the panel's own thread ends at its next refresh
    while threading.active_count() > before and time.monotonic() < patience:
        time.sleep(0.02)
    assert threading.active_count() <= before


def plain(out: Lines) -> Console:
    return Console(file=out, width=60)


def test_stages_start_and_end_with_a_line(out: Lines) -> None:
    clock = Clock()
    with ProgressDisplay(["search", "sft"], plain(out), clock=clock) as display:
        display.start_stage("search", 48, "trees")
        clock.now += 200
        display.update(48, solved=20)
        display.end_stage()
        display.skip_stage("sft", "done by an earlier process")
    assert out.lines == [
        "[ 0:00] search: started (48 trees)",
        "[ 3:20] search: done in 3:20 min; 48/48 trees, 20 solved",
        "[ 3:20] sft: skipped, done by an earlier process",
    ]
    assert display.seconds == {"search": 200}


def test_a_heartbeat_says_where_the_stage_stands_though_the_driver_waits(out: Lines) -> None:
    clock = Clock()
    with ProgressDisplay(["search"], plain(out), heartbeat_s=0.1, clock=clock) as display:
        display.start_stage("search", 48, "trees")
        clock.now += 200
        display.update(12, solved=5, tokens_per_s=213.4, programs_per_s=8.21)
        time.sleep(0.55)
    wanted = "[ 3:20] search: 12/48 trees, 5 solved, 213 tok/s, 8.2 programs/s, about 10 min left"
    assert 3 <= out.lines.count(wanted) <= 6
    count = len(out.lines)
    time.sleep(0.25)
    assert len(out.lines) == count  # it ends with the display


def test_other_lines_put_the_heartbeat_off(out: Lines) -> None:
    with ProgressDisplay(["a"], plain(out), heartbeat_s=0.4) as display:
        display.start_stage("a")
        for _ in range(8):
            time.sleep(0.1)
            display.message("still here [1/2]")
    assert [line[8:] for line in out.lines[1:-1]] == ["still here [1/2]"] * 8


def test_the_time_left_of_the_run_needs_an_estimate_of_every_stage(out: Lines) -> None:
    clock = Clock()
    estimates = {"search": 100.0, "sft": 60.0, "rl": 60.0}
    with ProgressDisplay(
        list(estimates), plain(out), heartbeat_s=0.1, stage_estimates=estimates, clock=clock
    ) as display:
        display.start_stage("search", 10)
        clock.now += 200
        display.end_stage()
        display.start_stage("sft")
        clock.now += 20
        time.sleep(0.15)
        # Search took twice its estimate, so the stages to come are taken to do the same: 2 * 60 - 20, and 2 * 60 more.
        assert "about 2 min left, whole run about 4 min" in out.lines[-1]
        display.end_stage()
        display.start_stage("unforeseen")
        time.sleep(0.15)
        assert "left" not in out.lines[-1]


def test_a_stage_without_a_size_says_how_long_it_runs(out: Lines) -> None:
    clock = Clock()
    with ProgressDisplay(["sync"], plain(out), heartbeat_s=0.05, clock=clock) as display:
        display.start_stage("sync")
        clock.now += 40
        time.sleep(0.1)
        assert out.lines[-1] == "[ 0:40] sync: running for 40 s"
        display.update(policy="v3", loss=0.51234)
        display.update(policy=None)
        time.sleep(0.1)
        assert out.lines[-1] == "[ 0:40] sync: loss 0.512"


def test_an_interrupted_stage_is_not_called_done(out: Lines) -> None:
    with pytest.raises(KeyboardInterrupt):
        with ProgressDisplay(["search", "sft"], plain(out)) as display:
            display.start_stage("search")
            raise KeyboardInterrupt
    assert "search: stopped after" in out.lines[-1]
    assert out.lines[-1].endswith("interrupted")


def test_a_repeated_stage_adds_up_and_an_open_one_is_ended(out: Lines) -> None:
    clock = Clock()
    with ProgressDisplay(["a", "b"], plain(out), clock=clock) as display:
        for name in ("a", "b", "a"):
            display.start_stage(name)
            clock.now += 10
    assert display.seconds == {"a": 20, "b": 10}


def test_updates_from_many_threads_are_safe(out: Lines) -> None:
    with ProgressDisplay(["a"], plain(out), heartbeat_s=0.01) as display:
        display.update(3)  # before any stage: nothing to update
        display.start_stage("a", 1000)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda i: display.update(i, **{f"field{i % 7}": i}), range(1000)))
        display.update(1000)
        display.end_stage("fine")
    assert out.lines[-1].endswith("; fine")
    assert all(re.match(r"\[ ?\d+:\d\d\] ", line) for line in out.lines)


class Broken(io.StringIO):
    def __init__(self, error: type[Exception]) -> None:
        super().__init__()
        self.error = error
        self.tried = 0

    def write(self, text: str) -> int:
        self.tried += 1
        raise self.error("gone")


@pytest.mark.parametrize("interactive", [False, True])
@pytest.mark.parametrize("error", [BrokenPipeError, ValueError, UnicodeEncodeError])
def test_no_failure_of_the_display_ends_a_run(interactive: bool, error: type[Exception]) -> None:
    file = Broken(error)
    console = Console(file=file, force_terminal=interactive, width=80)
    with ProgressDisplay(["a"], console, interactive=interactive, heartbeat_s=0.05) as display:
        display.start_stage("a", 10)
        display.update(5, odd=object())  # type: ignore[arg-type]
        display.message("hello")
        time.sleep(0.3)
        display.end_stage()
        display.skip_stage("b", "c")
    assert file.tried > 0
    assert "a" in display.seconds


def panel(width: int) -> str:
    """The live panel as it stands after a while, without control codes."""
    out, clock = Lines(), Clock()
    console = Console(file=out, force_terminal=True, width=width, height=40, color_system=None)
    names = ["test generator", "search", "policy SFT", "weight sync"]
    with ProgressDisplay(names, console, stage_estimates=dict.fromkeys(names, 60.0), clock=clock) as display:
        display.start_stage("test generator", 30, "steps")
        clock.now += 60
        display.end_stage("accuracy 41 %")
        display.start_stage("search", 48, "trees")
        clock.now += 200
        display.update(12, solved=5, tokens_per_s=213.4, programs_per_s=8.21)
        display.message("W&B: offline [not a tag]")
        time.sleep(0.6)
        shown = out.getvalue()
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)


@pytest.mark.slow
@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_the_panel_shows_every_stage_and_fits(width: int) -> None:
    shown = panel(width)
    assert "W&B: offline [not a tag]" in shown
    frame = [line.strip("\r") for line in shown[shown.rindex("╭") :].splitlines()]
    assert all(len(line) == min(width, 100) for line in frame if line)
    page = " ".join(" ".join(frame).replace("│", " ").split())
    for said in (
        "test generator 1:00 accuracy 41 %",
        "search 3:20",
        "12/48 trees, 5 solved, 213 tok/s",
        "· policy SFT",
    ):
        assert said in page
    assert "about 10 min left" in page
    assert "4:20 so far, about 12 min left" in page
    assert "━" in page


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "5 s"), (42, "40 s"), (89, "90 s"), (91, "2 min"), (3569, "59 min"), (3590, "1 h"), (4900, "1 h 20 min")],
)
def test_durations_are_as_exact_as_an_estimate(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_fields_read_like_a_sentence() -> None:
    assert format_field("solved", 5) == "5 solved"
    assert format_field("tokens_per_s", 1234.5) == "1,234 tok/s"
    assert format_field("test_cases_per_s", 8.25) == "8.2 test cases/s"
    assert format_field("loss", 0.51234) == "loss 0.512"
    assert format_field("policy", "v3") == "policy v3"
    assert format_field("loss", float("nan")) == "loss -"


def test_the_first_of_many_do_not_tell_the_time(out: Lines) -> None:
    clock = Clock()
    with ProgressDisplay(["eval"], plain(out), heartbeat_s=0.1, stage_estimates={"eval": 80.0}, clock=clock) as display:
        display.start_stage("eval", 144)
        clock.now += 20
        display.update(1)
        time.sleep(0.15)
        assert "about 60 s left" in out.lines[-1]
        clock.now += 20
        display.update(72)
        time.sleep(0.15)
        assert "about 40 s left" in out.lines[-1]


def test_another_phase_of_a_stage_goes_by_its_own_pace(out: Lines) -> None:
    clock = Clock()
    with ProgressDisplay(["rl"], plain(out), heartbeat_s=0.1, stage_estimates={"rl": 170.0}, clock=clock) as display:
        display.start_stage("rl")
        display.update(0, 144)
        clock.now += 100
        display.update(144, 144)
        time.sleep(0.15)
        assert "about 70 s left" in out.lines[-1]  # training is still to come
        display.update(0, 3)
        clock.now += 40
        display.update(1, 3)
        time.sleep(0.15)
        assert "about 80 s left" in out.lines[-1]


def test_the_share_of_the_work_tells_the_time_where_units_end_late(out: Lines) -> None:
    clock = Clock()
    with ProgressDisplay(["search"], plain(out), heartbeat_s=0.1, clock=clock) as display:
        display.start_stage("search", 48, "trees")
        clock.now += 200
        display.update(1, share=0.25)
        time.sleep(0.15)
    assert any("1/48 trees, about 10 min left" in line for line in out.lines)
