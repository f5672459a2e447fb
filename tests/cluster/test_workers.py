"""The cluster that a run starts: its actors run our code, whatever lies in the user's working directory."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cluster.config import load
from cluster.workers import Workers
from reasoning.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
DRIVER = """
import os, sys
from cluster.workers import prepare_environment, start_ray

prepare_environment()
start_ray("test")
import ray

@ray.remote(num_cpus=0)
def where():
    import cluster
    import reasoning
    return cluster.__file__, reasoning.__file__

print(*ray.get(where.remote(), timeout=60), os.getcwd(), sep="\\n")
ray.shutdown()
"""


@pytest.mark.slow
def test_actors_run_our_code_and_not_that_of_the_working_directory(tmp_path):
    for name in ("cluster", "reasoning"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('theirs')", encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as short:  # sockets live in it
        ended = subprocess.run(
            [sys.executable, "-P", "-c", DRIVER],
            cwd=tmp_path,
            env={**environment, "PYTHONPATH": str(ROOT), "TMPDIR": short},
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == [
        str(ROOT / "cluster" / "__init__.py"),
        str(ROOT / "reasoning" / "__init__.py"),
        str(tmp_path),
    ]


ORPHAN = """
import subprocess, sys, time
import psutil
from cluster.workers import adopt_orphans, end_processes

adopt_orphans()
start = "subprocess.Popen(['sleep', '60'], start_new_session=True, stdout=-3, stderr=-3)"
inner = f"import subprocess; print({start}.pid)"
orphan = int(subprocess.run([sys.executable, "-c", inner], capture_output=True, check=True).stdout)
found = {p for p in psutil.Process().children(recursive=True) if p.pid == orphan}
end_processes(found)
print(len(found), psutil.pid_exists(orphan))
"""


HYDRA = """
import subprocess, sys, time
import psutil
from cluster.workers import adopt_orphans, end_all_below

adopt_orphans()
sleep = "subprocess.Popen(['sleep', '60'], start_new_session=True)"
act = f"signal.signal(15, lambda *_: {sleep} and exit())"
head = f"import signal, subprocess, time; {act}; print(1, flush=True); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", head], stdout=subprocess.PIPE)
child.stdout.readline()
known = {psutil.Process(), psutil.Process(child.pid)}
end_all_below(known)
print(len(psutil.Process().children(recursive=True)))
"""


def test_processes_that_come_up_while_others_are_ended_are_ended_too():
    ended = subprocess.run(
        [sys.executable, "-c", HYDRA], cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=50, check=True
    )
    assert ended.stdout.split() == ["0"]


def test_processes_whose_parent_is_gone_are_found_and_ended():
    """Such as Ray's workers, where a signal to the whole group ended Ray itself."""
    ended = subprocess.run(
        [sys.executable, "-c", ORPHAN], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout.split() == ["1", "False"], ended.stderr


@pytest.mark.slow
def test_more_sandbox_slots_than_the_cluster_has_cpus_are_refused(local_ray, tmp_path):
    config = load("tiny", ["sandbox.workers=2", "sandbox.slots=2"])
    with pytest.raises(InputError, match=r"sandbox\.workers: got 2: 2 x 2 CPUs are needed.*at most 2"):
        Workers(config, tmp_path, tmp_path).start_sandboxes()
