"""The launcher's answers to machines that it cannot install on."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def launch(tmp_path, *arguments, **environment):
    variables = {**os.environ, "O1CODER_VENV": str(tmp_path / "venv"), **environment}
    return subprocess.run(
        [ROOT / "o1coder", *arguments],
        env=variables,
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )


def script(path, text):
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return str(path)


def test_another_python_is_refused_by_name(tmp_path):
    other = script(tmp_path / "python9", 'case "$*" in *platform*) echo 3.9.18;; *) exit 1;; esac\n')
    result = launch(tmp_path, "train", O1CODER_PYTHON=other)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "Python 3.11" in result.stderr
    assert "3.9.18" in result.stderr
    assert not (tmp_path / "venv").exists()


def test_no_python_at_all_is_told(tmp_path):
    result = launch(tmp_path, "train", O1CODER_PYTHON=str(tmp_path / "nothing"))
    assert result.returncode == 2
    assert "found none" in result.stderr


def test_an_unknown_stack_is_refused(tmp_path):
    result = launch(tmp_path, "train", O1CODER_STACK="tpu")
    assert result.returncode == 2
    assert "cpu or gpu" in result.stderr


def test_too_little_disk_is_told_before_anything_is_made(tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    script(tools / "df", "printf 'h\\nfs 1 1 1000 1%% /\\n'\n")
    python = script(tmp_path / "python", "exit 0\n")
    path = f"{tools}:{os.environ['PATH']}"
    result = launch(tmp_path, "train", O1CODER_PYTHON=python, O1CODER_STACK="cpu", PATH=path)
    assert result.returncode == 2
    assert "6 GB free" in result.stderr
    assert not (tmp_path / "venv").exists()
