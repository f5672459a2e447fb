"""The run directory: whole or absent, owned by one process, and refused in words where it cannot be used."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import run_dir as module
from cluster.run_dir import RunDir, default_path
from reasoning.errors import InputError


def names(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir()}


def test_create_makes_the_whole_layout(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "a" / "b" / "run", ["o1coder", "train", "--seed", "1 2"])
    assert names(run.path) == {"run.json", "lock", "trees", "data", "checkpoints", "logs", "wandb"}
    assert run.info()["format"] == 1
    assert run.info()["command"] == "o1coder train --seed '1 2'"
    assert names(run.path.parent) == {"run"}
    assert run.read_state() == {}


def test_paths_are_absolute_wherever_they_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = RunDir.create("run")
    assert run.path == tmp_path / "run"
    assert run.checkpoints == tmp_path / "run" / "checkpoints"


def test_default_path_is_under_the_working_directory_and_gives_the_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = default_path(), default_path()
    assert first != second
    assert first.parent == tmp_path / "runs"
    assert RunDir.create(first).id == first.name


def test_an_empty_directory_may_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    assert RunDir.create(tmp_path / "empty").marker.is_file()

    (tmp_path / "mount").mkdir()
    real = Path.rename

    def busy(self: Path, target: Path) -> Path:
        if Path(target).name == "mount":
            raise OSError(16, "Device or resource busy")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", busy)
    run = RunDir.create(tmp_path / "mount")
    assert run.marker.is_file()
    assert names(tmp_path) == {"empty", "mount"}
    with pytest.raises(InputError):
        RunDir.open(run.path)  # filled in place, it is locked all the same


def test_create_refuses_what_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    for name, reason in (("file", "it is a file"), ("full", "thesis.tex")):
        with pytest.raises(InputError, match=reason) as caught:
            RunDir.create(tmp_path / name)
        assert caught.value.field == "run-dir"
    assert names(tmp_path) == {"file", "full"}
    assert names(tmp_path / "full") == {"thesis.tex"}


def test_create_on_a_run_tells_of_resume(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run")
    run.close()
    before = run.marker.read_bytes()
    with pytest.raises(InputError, match=f"--resume {run.path}"):
        RunDir.create(run.path)
    assert run.marker.read_bytes() == before


def test_a_failed_create_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_atomic", full)
    with pytest.raises(InputError, match="No space left"):
        RunDir.create(tmp_path / "new" / "parent" / "run")
    assert names(tmp_path) == set()
    monkeypatch.undo()
    RunDir.create(tmp_path / "new" / "parent" / "run")  # no lock is left either


def test_a_path_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError) as caught:
        RunDir.create(tmp_path / "file" / "run")
    assert caught.value.field == "run-dir"


def test_open_goes_on_with_a_run(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run")
    run.write_state({"finished": ["search"]})
    (run.path / "logs").rmdir()
    run.close()
    again = RunDir.open(tmp_path / "run")
    assert again.id == run.id
    assert again.read_state() == {"finished": ["search"]}
    assert again.logs.is_dir()


@pytest.mark.parametrize(
    ("marker", "reason"),
    [
        (None, "there is no run.json"),
        ("{", "cannot be read"),
        ("[]", "does not hold a JSON object"),
        ("{}", "lacks a format or an id"),
        ('{"format": 99, "id": "x"}', "it has format 99"),
    ],
)
def test_open_refuses_what_is_no_run(tmp_path: Path, marker: str | None, reason: str) -> None:
    if marker is not None:
        (tmp_path / "run.json").write_text(marker)
    with pytest.raises(InputError, match=reason) as caught:
        RunDir.open(tmp_path)
    assert caught.value.field == "resume"
    assert names(tmp_path) <= {"run.json"}


def test_open_refuses_missing_paths_and_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for name, reason in (("none", "no such directory"), ("file", "not a directory")):
        with pytest.raises(InputError, match=reason):
            RunDir.open(tmp_path / name)
    assert names(tmp_path) == {"file"}


def test_the_lock_names_its_holder_and_ends_with_it(tmp_path: Path) -> None:
    RunDir.create(tmp_path / "run").close()
    code = "import sys, time; from cluster.run_dir import RunDir; r = RunDir.open(sys.argv[1])"
    code += "; print(flush=True); time.sleep(60)"
    root = Path(__file__).parents[2]
    other = subprocess.Popen([sys.executable, "-c", code, tmp_path / "run"], cwd=root, stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None and other.stdout.readline() == b"\n"
        with pytest.raises(InputError, match=f"process {other.pid} on ") as caught:
            RunDir.open(tmp_path / "run")
        assert caught.value.field == "resume"
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert RunDir.open(tmp_path / "run").id


def test_the_lock_is_exclusive_within_a_process_and_does_not_travel(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run")
    with pytest.raises(InputError, match=f"process {os.getpid()} "):
        RunDir.open(tmp_path / "run")
    copy = pickle.loads(pickle.dumps(run))
    assert copy.path == run.path
    copy.close()
    with pytest.raises(InputError):
        RunDir.open(tmp_path / "run")
    run.close()
    RunDir.open(tmp_path / "run")


def test_json_is_strict_and_whole(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run")
    path = run.write_json("data/x.json", {"a": [1, "ä"]})
    assert path == run.data / "x.json"
    assert json.loads(path.read_text()) == {"a": [1, "ä"]}
    with pytest.raises(ValueError):
        run.write_json("data/x.json", {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": [1, "ä"]}


def test_publish_puts_a_directory_in_place_and_replaces_one(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run")
    for version in ("one", "two"):
        scratch = run.stage_dir("policy rl/1")
        (scratch / version).write_text(version)
        assert run.publish_dir(scratch, "checkpoints/policy") == run.checkpoints / "policy"
        assert names(run.checkpoints / "policy") == {version}
    assert names(run.path / ".scratch") == set()


@pytest.mark.parametrize("target", ["../outside", "/tmp/outside", "", "."])
def test_publish_stays_inside_the_run(tmp_path: Path, target: str) -> None:
    run = RunDir.create(tmp_path / "run")
    with pytest.raises(ValueError, match="inside"):
        run.publish_dir(run.stage_dir("x"), target)


def test_publish_that_fails_keeps_the_old_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir.create(tmp_path / "run")
    old = run.stage_dir("x")
    (old / "old").touch()
    run.publish_dir(old, "data/set")
    new = run.stage_dir("x")
    real = Path.rename
    monkeypatch.setattr(Path, "rename", lambda a, b: _refuse() if a == new else real(a, b))
    with pytest.raises(OSError, match="refused"):
        run.publish_dir(new, "data/set")
    assert names(run.data / "set") == {"old"}


def _refuse() -> Path:
    raise OSError(5, "refused")


def test_a_kill_in_the_middle_of_a_replacement_is_undone_on_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill() -> Path:
        raise Killed

    run = RunDir.create(tmp_path / "run")
    old = run.stage_dir("x")
    (old / "old").touch()
    run.publish_dir(old, "checkpoints/round-1/policy")
    new = run.stage_dir("x")
    real = Path.rename
    monkeypatch.setattr(Path, "rename", lambda a, b: kill() if a == new else real(a, b))
    with pytest.raises(Killed):
        run.publish_dir(new, "checkpoints/round-1/policy")
    monkeypatch.undo()
    assert not (run.checkpoints / "round-1" / "policy").exists()
    run.close()
    run = RunDir.open(run.path)
    assert names(run.checkpoints / "round-1" / "policy") == {"old"}
    assert not (run.path / ".scratch").exists()


def test_too_little_disk_is_refused_before_the_directory_exists(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "not" / "yet")
    run.require_disk(0.0001)
    with pytest.raises(InputError, match="GiB are free") as caught:
        run.require_disk(1e9)
    assert caught.value.field == "run-dir"
    assert names(tmp_path) == set()
