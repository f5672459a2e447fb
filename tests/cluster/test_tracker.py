"""The tracker: metrics.jsonl is complete whatever W&B does, and W&B gets the same numbers over the right axes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from cluster import tracker as module
from cluster.run_dir import RunDir
from cluster.tracker import Tracker, _scratch, axis_of, check_line, read_metrics, resolve_mode
from reasoning.errors import InputError

pytestmark = pytest.mark.slow  # starts processes all the time

ROOT = Path(__file__).parents[2]
KEY = "0" * 40
NO_SERVER = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def no_account(tmp_path: Path) -> Iterator[None]:
    """A machine without a W&B account; what a tracker sets in the environment is taken back."""
    saved = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        del os.environ[name]
    os.environ |= {"NETRC": str(tmp_path / "no-netrc"), "WANDB_CONFIG_DIR": str(tmp_path / "wandb-config")}
    yield
    import wandb

    wandb.teardown()
    os.environ.clear()
    os.environ.update(saved)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    made = RunDir.create(tmp_path / "run", "o1coder train")
    yield made
    made.close()


def records(run: RunDir) -> list[dict[str, Any]]:
    """What every W&B run in the directory holds, read by W&B's own reader, oldest run first."""
    tool = Path(sys.executable).with_name("wandb")
    found = []
    for path in sorted(run.wandb.glob("offline-run-*/*.wandb")):
        text = subprocess.run([tool, "leet", "inspect", "--json", path], capture_output=True, check=True, timeout=60)
        found += [json.loads(line) for line in text.stdout.splitlines()]
    return found


def of_type(kind: str, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record[kind] for record in found if record["type"] == kind]


def history(run: RunDir) -> list[dict[str, Any]]:
    return [record["item"] for record in of_type("history", records(run))]


def service_processes(seconds: float = 15.0) -> list[str]:
    """W&B's processes that are still there after this long; told to end, they take their time where much runs."""
    mine = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            mine += [process] if "wandb" in " ".join(process.cmdline()) else []
    _, alive = psutil.wait_procs(mine, timeout=seconds)
    return [p.name() for p in alive]


def test_both_records_hold_the_same_numbers(run: RunDir) -> None:
    tracker = Tracker(run, {"seed": 3, "search": {"samples": 4}}, "offline", name="a name")
    tracker.log({"eval/pass_at_1": 0.25, "search/solved": 3}, {"round": 1})
    tracker.log({"rl/mismatch_kl": 0.5}, {"learner/step": 7, "round": 1})
    tracker.log({"memory/gb": 2.5})
    status = tracker.finish(0)

    lines = read_metrics(run.metrics)
    assert [list(line) for line in lines] == [
        ["time", "round", "wall_s", "eval/pass_at_1", "search/solved"],
        ["time", "learner/step", "round", "wall_s", "rl/mismatch_kl"],
        ["time", "wall_s", "memory/gb"],
    ]
    assert abs(lines[0]["time"] - time.time()) < 60
    found = records(run)
    sent = [record["item"] for record in of_type("history", found)]
    for line, item in zip(lines, sent, strict=True):
        assert {k: v for k, v in item.items() if not k.startswith("_")} == {
            k: v for k, v in line.items() if k != "time"
        }

    (start,) = of_type("run", found)
    assert (start["run_id"], start["project"], start["display_name"]) == (run.id, "o1coder", "a name")
    assert start["config"]["update"]["search"] == {"samples": 4}
    assert (status.mode, status.warning) == ("offline", "")
    assert f"wandb sync {run.path}/wandb/offline-run-*" in status.note
    assert Path(status.wandb_dir).parent == run.wandb


def test_metrics_are_drawn_over_their_axes(run: RunDir) -> None:
    tracker = Tracker(run, {}, "offline")
    tracker.log({"memory/gb": 2.5})
    tracker.finish()
    defined = of_type("metric", records(run))
    axis = {m.get("name") or m["glob_name"]: m.get("step_metric") for m in defined}
    for family in ("eval/*", "search/*", "tcg/*", "sandbox/*", "sync/*", "prm/*"):
        assert axis[family] == "round"
    for family in ("rl/*", "sft/*", "tcg_sft/*", "tcg_dpo/*", "prm/loss"):
        assert axis[family] == "learner/step"
    assert axis["memory/gb"] == "wall_s"


def test_all_files_of_wandb_stay_in_the_run_directory(run: RunDir, tmp_path: Path) -> None:
    tracker = Tracker(run, {}, "auto")
    tracker.log_table(
        "eval/examples", ["problem", "passed", "note"], [["a", 1, None], ["b", "none", object]], {"round": 0}
    )
    tracker.finish()
    tables = list(run.wandb.glob("offline-run-*/files/media/table/eval/*.json"))
    assert json.loads(tables[0].read_text())["columns"] == ["problem", "passed", "note"]
    assert {path.name for path in tmp_path.iterdir()} <= {"run", "wandb-config"}
    assert {path.name for path in run.path.iterdir()} >= {"wandb", "metrics.jsonl"}
    assert not (run.wandb / "wandb").exists()
    assert service_processes() == []
    assert len(_scratch()) == 2 and not any(place.exists() for place in _scratch())


def test_a_bad_table_is_refused(run: RunDir) -> None:
    tracker = Tracker(run, {}, "disabled")
    with pytest.raises(ValueError, match="eval/examples, row 1: got 1 values; use 2"):
        tracker.log_table("eval/examples", ["a", "b"], [[1, 2], [3]])
    with pytest.raises(ValueError, match="'epoch'"):
        tracker.log_table("eval/examples", ["a"], [[1]], {"epoch": 1})


@pytest.mark.parametrize(
    ("metrics", "axes", "words"),
    [
        ({"rl/loss": float("nan")}, {"learner/step": 1}, "rl/loss: got nan"),
        ({"rl/loss": np.float32("inf")}, {"learner/step": 1}, "rl/loss: got inf"),
        ({"rl/loss": "0.5"}, {"learner/step": 1}, "rl/loss: got '0.5'"),
        ({"rl/loss": None}, {"learner/step": 1}, "rl/loss: got None"),
        ({"rl/loss": 0.5}, {"round": 1}, "rl/loss: its axis 'learner/step' is missing"),
        ({"prm/auc": 0.5}, {"learner/step": 1}, "prm/auc: its axis 'round' is missing"),
        ({"eval/pass_at_1": 0.5}, {}, "eval/pass_at_1: its axis 'round' is missing"),
        ({"eval/pass_at_1": 0.5}, {"round": float("nan")}, "round: got nan"),
        ({"eval/pass_at_1": 0.5}, {"round": 1, "epoch": 1}, "'epoch'"),
        ({"round": 1}, {"round": 1}, "round: it is an axis"),
        ({"time": 1}, {}, "time: it is an axis"),
        ({}, {"round": 1}, "got none"),
    ],
)
def test_a_line_that_cannot_be_drawn_is_refused(
    run: RunDir, metrics: dict[str, Any], axes: dict[str, Any], words: str
) -> None:
    tracker = Tracker(run, {}, "disabled")
    with pytest.raises(ValueError) as caught:
        tracker.log(metrics, axes)
    assert words in str(caught.value)
    tracker.log({"rl/loss": 0.5}, {"learner/step": 1})
    assert [line["rl/loss"] for line in read_metrics(run.metrics)] == [0.5]


def test_numbers_of_numpy_become_plain_ones() -> None:
    line = check_line(
        {"rl/loss": np.float32(0.5), "rl/tokens": np.int64(3), "rl/clipped": True}, {"learner/step": np.int32(2)}
    )
    assert json.loads(json.dumps(line)) == {"learner/step": 2, "rl/loss": 0.5, "rl/tokens": 3, "rl/clipped": 1}
    assert type(line["rl/tokens"]) is int


def test_the_axis_of_a_metric() -> None:
    assert [axis_of(n) for n in ("prm/loss", "prm/auc", "sft/loss", "fleet/engines", "loss")] == [
        "learner/step",
        "round",
        "learner/step",
        "wall_s",
        "wall_s",
    ]


def test_a_resumed_run_goes_on(run: RunDir) -> None:
    now = [1000.0]
    first = Tracker(run, {}, "offline", clock=lambda: now[0])
    now[0] += 50
    first.log({"eval/pass_at_1": 0.1}, {"round": 0})
    first.finish(1)
    with run.metrics.open("a") as file:
        file.write('{"time": 1051.0, "rou')  # the process was killed in the middle of a line
    now[0] += 10_000
    second = Tracker(run, {}, "offline", clock=lambda: now[0])
    now[0] += 5
    second.log({"eval/pass_at_1": 0.2}, {"round": 1})
    second.finish(0)

    assert [(line["round"], line["wall_s"]) for line in read_metrics(run.metrics)] == [(0, 50), (1, 55)]
    found = records(run)
    assert [record["run_id"] for record in of_type("run", found)] == [run.id, run.id]
    items = [record["item"] for record in of_type("history", found)]
    assert [(item["round"], item["eval/pass_at_1"]) for item in items] == [(0, 0.1), (1, 0.2)]
    assert [record.get("exit_code", 0) for record in of_type("exit", found)] == [1, 0]


def test_every_line_is_on_disk_at_once(run: RunDir) -> None:
    tracker = Tracker(run, {}, "disabled")
    for step in range(3):
        tracker.log({"sft/loss": step}, {"learner/step": step})
        assert len(read_metrics(run.metrics)) == step + 1
    tracker.finish()
    tracker.finish()
    with pytest.raises(RuntimeError, match="sft/loss"):
        tracker.log({"sft/loss": 1}, {"learner/step": 1})


def test_reading_tolerates_a_torn_last_line_only(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n{"a": \xc3')
    assert read_metrics(path) == [{"a": 1}, {"a": 2}]
    path.write_text('{"a": 1}\n{"a": 2}')
    assert read_metrics(path) == [{"a": 1}, {"a": 2}]
    path.write_text('{"a": 1}\n{"a"\n{"a": 2}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_metrics(path)


def test_a_whole_last_line_without_its_end_is_kept(run: RunDir) -> None:
    run.metrics.write_text('{"round": 1, "wall_s": 7.0, "eval/x": 1}')
    tracker = Tracker(run, {}, "disabled")
    tracker.log({"eval/x": 2}, {"round": 2})
    assert [line["eval/x"] for line in read_metrics(run.metrics)] == [1, 2]
    assert read_metrics(run.metrics)[1]["wall_s"] >= 7.0


def test_the_mode_without_a_key(tmp_path: Path) -> None:
    mode, note = resolve_mode("auto", tmp_path)
    assert mode == "offline"
    assert note == f"W&B: offline (no API key configured); sync later with `wandb sync {tmp_path}/wandb/offline-run-*`"
    with pytest.raises(InputError, match="no API key configured") as caught:
        resolve_mode("online")
    assert caught.value.field == "wandb.mode"
    assert resolve_mode("offline")[0] == "offline"
    assert resolve_mode("disabled")[0] == "disabled"
    with pytest.raises(InputError, match="'onlin'"):
        resolve_mode("onlin")


def test_asking_for_the_mode_starts_no_process_and_writes_nothing(tmp_path: Path) -> None:
    code = "import psutil; from cluster.tracker import resolve_mode; print(resolve_mode('auto')[0], end=' ')"
    code += "; print(len(psutil.Process().children(recursive=True)))"
    home = tmp_path / "home"
    home.mkdir()
    environment = os.environ | {"HOME": str(home), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    del environment["WANDB_CONFIG_DIR"]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=home, env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["offline", "0"]
    assert list(home.iterdir()) == []


def test_the_mode_with_a_key(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    os.environ["WANDB_API_KEY"] = KEY
    assert resolve_mode("auto")[0] == resolve_mode("online")[0] == "online"
    assert resolve_mode("offline")[0] == "offline"
    assert capfd.readouterr() == ("", "")


def test_the_mode_with_a_netrc(tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine api.wandb.ai\n  login user\n  password {KEY}\n")
    os.environ |= {"NETRC": str(netrc), "WANDB_BASE_URL": "https://api.wandb.ai"}
    assert resolve_mode("auto")[0] == "online"


def test_the_mode_with_a_bad_key() -> None:
    os.environ["WANDB_API_KEY"] = "too-short-a-key"
    mode, note = resolve_mode("auto")
    assert mode == "offline"
    assert "cannot be used" in note
    assert "too-short-a-key" not in note


@pytest.mark.parametrize("wished", ["offline", "disabled"])
def test_the_mode_heeds_what_wandb_is_told(wished: str) -> None:
    os.environ |= {"WANDB_API_KEY": KEY, "WANDB_MODE": wished}
    assert resolve_mode("auto")[0] == wished


def test_a_server_that_does_not_answer_makes_the_run_offline(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    os.environ |= {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": NO_SERVER}
    monkeypatch.setattr(module, "INIT_SECONDS", 2.0)
    tracker = Tracker(run, {}, "auto")
    tracker.log({"eval/pass_at_1": 0.25}, {"round": 0})
    status = tracker.finish()
    assert status.mode == "offline"
    assert "online start failed" in status.warning
    assert status.warning in status.note
    assert [item["eval/pass_at_1"] for item in history(run)] == [0.25]


def test_a_key_that_did_not_reach_the_tracker_stops_nothing(run: RunDir) -> None:
    tracker = Tracker(run, {}, "online")
    tracker.log({"eval/pass_at_1": 0.25}, {"round": 0})
    status = tracker.finish()
    assert status.mode == "offline"
    assert "no API key configured" in status.warning
    assert len(history(run)) == len(read_metrics(run.metrics)) == 1


def test_a_wandb_that_cannot_start_stops_nothing(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def broken(**_: object) -> None:
        raise RuntimeError("no service")

    monkeypatch.setattr(wandb, "init", broken)
    tracker = Tracker(run, {}, "offline")
    tracker.log({"eval/pass_at_1": 0.25}, {"round": 0})
    tracker.log_table("eval/examples", ["a"], [[1]])
    status = tracker.finish()
    assert status.mode == "disabled"
    assert "no service" in status.warning
    assert len(read_metrics(run.metrics)) == 1


def test_a_wandb_that_breaks_is_named_once_and_metrics_go_on(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = Tracker(run, {}, "offline")
    calls = []

    def broken(line: dict[str, float]) -> None:
        calls.append(line)
        raise ConnectionError(f"service is gone ({len(calls)})")

    monkeypatch.setattr(tracker._wandb, "log", broken)
    for step in range(3):
        tracker.log({"sft/loss": step}, {"learner/step": step})
    assert tracker.status().warning == "log: ConnectionError: service is gone (1); only metrics.jsonl goes on"
    assert len(calls) == 1
    assert [line["sft/loss"] for line in read_metrics(run.metrics)] == [0, 1, 2]
    tracker.finish()


def test_finish_keeps_its_deadline(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = Tracker(run, {}, "offline")
    release = threading.Event()
    monkeypatch.setattr(tracker._wandb, "finish", lambda exit_code: release.wait(30))
    began = time.monotonic()
    status = tracker.finish(0, deadline_s=0.3)
    assert time.monotonic() - began < 5
    assert "did not finish within 0.3 s" in status.warning
    release.set()


ACTOR = """
import sys
import ray
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 2**20)
from cluster.tracker import TrackerActor
tracker = TrackerActor.remote(sys.argv[1], {"seed": 1}, "offline")
ray.get([tracker.log.remote({"sft/loss": i}, {"learner/step": i}) for i in range(5)], timeout=60)
try:
    ray.get(tracker.log.remote({"sft/loss": 1.0}, {}), timeout=60)
except ValueError as error:
    assert "sft/loss" in str(error)
else:
    raise AssertionError("a line without its axis was taken")
print(ray.get(tracker.finish.remote(0), timeout=60).mode)
ray.shutdown()
"""


def test_the_actor_needs_no_cpu_and_does_the_same(run: RunDir) -> None:
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "t" * 32, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", ACTOR, run.path], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["offline"]
    assert [line["sft/loss"] for line in read_metrics(run.metrics)] == [0, 1, 2, 3, 4]
    assert [item["sft/loss"] for item in history(run)] == [0, 1, 2, 3, 4]


def test_importing_the_tracker_imports_neither_ray_nor_wandb() -> None:
    code = "import sys, cluster.tracker; print([m for m in ('ray', 'wandb', 'torch') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
