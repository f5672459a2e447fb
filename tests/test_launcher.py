"""The launcher: machines that it cannot install on, changes of the stack, and whose code it starts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # starts processes all the time

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


# A Python that makes environments of nothing: `-m venv DIR` copies it there. Only the command line is really run.
PYTHON = f"""
case "$*" in
"-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && : >"$3/pyvenv.cfg" ;;
*cluster.cli*) exec {sys.executable} "$@" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path):
    """A copy of what the launcher reads, with tools that install nothing; returns a call of it."""
    here = tmp_path / "checkout"
    (here / "requirements").mkdir(parents=True)
    for name in ("o1coder", "pyproject.toml", "requirements/cpu.txt"):
        shutil.copy(ROOT / name, here / name)
    (tmp_path / "bin").mkdir()
    script(tmp_path / "bin" / "df", "printf 'h\\nfs 1 1 90000000 1%% /\\n'\n")
    python = script(tmp_path / "python", PYTHON)

    def call(stack, **environment):
        given = {"O1CODER_PYTHON": python, "O1CODER_STACK": stack, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
        variables = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "O1CODER_VENV"}}
        return subprocess.run(
            [here / "o1coder", "config"],
            env={**variables, **given, **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )

    return call


def test_another_stack_gets_an_environment_of_its_own(checkout, tmp_path):
    venv = tmp_path / "checkout" / ".venv"
    assert checkout("cpu").returncode == 0
    (venv / "package").touch()
    assert "installing" not in checkout("cpu").stderr
    assert (venv / "package").exists()
    ended = checkout("gpu")
    assert ended.returncode == 0, ended.stderr
    assert f"replacing the cpu stack in {venv} by the gpu one" in ended.stderr
    assert not (venv / "package").exists()
    assert (venv / ".o1coder-runtime").read_text().startswith("gpu-")


def test_an_environment_from_before_the_stack_was_noted(checkout, tmp_path):
    venv = tmp_path / "checkout" / ".venv"
    checkout("gpu")
    (venv / ".o1coder-stack").unlink()
    (venv / "package").touch()
    checkout("cpu")
    assert not (venv / "package").exists()


def test_an_install_of_another_stack_that_was_broken_off_is_thrown_away(checkout, tmp_path):
    venv = tmp_path / "checkout" / ".venv"
    failing = script(tmp_path / "failing", PYTHON.replace("esac", '*"pip install"*) exit 1 ;;\nesac'))
    assert checkout("gpu", O1CODER_PYTHON=failing).returncode == 2
    (venv / "package").touch()
    assert checkout("cpu").returncode == 0
    assert not (venv / "package").exists()


def test_the_same_stack_keeps_its_environment_when_requirements_change(checkout, tmp_path):
    venv = tmp_path / "checkout" / ".venv"
    checkout("cpu")
    (venv / "package").touch()
    with open(tmp_path / "checkout" / "requirements" / "cpu.txt", "a", encoding="utf-8") as file:
        file.write("\n")
    assert "installing" in checkout("cpu").stderr
    assert (venv / "package").exists()


def test_what_is_no_environment_is_not_removed(checkout, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").touch()
    ended = checkout("cpu", O1CODER_VENV=str(tmp_path / "mine"))
    assert ended.returncode == 2
    assert "something else than a virtual environment" in ended.stderr
    assert (tmp_path / "mine" / "notes").exists()


def test_the_code_beside_the_launcher_is_the_one_that_runs(checkout, tmp_path):
    """Not a folder of the same name in the working directory, nor the checkout that the environment was made for."""
    for place, text in ((tmp_path, "raise SystemExit('theirs')"), (tmp_path / "checkout", "")):
        (place / "cluster").mkdir()
        (place / "cluster" / "__init__.py").write_text(text, encoding="utf-8")
    ours = "import os, sys; print(os.getcwd(), *sys.argv[1:], os.environ['PYTHONPATH'], sep='\\n')"
    (tmp_path / "checkout" / "cluster" / "cli.py").write_text(ours, encoding="utf-8")
    ended = checkout("cpu", PYTHONPATH="/theirs")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == [str(tmp_path), "config", f"{tmp_path}/checkout:/theirs"]


def test_an_environment_of_the_users_is_not_removed(checkout, tmp_path):
    mine = tmp_path / "mine"
    script_home = mine / "bin"
    script_home.mkdir(parents=True)
    script(script_home / "python", "exit 1\n")  # another Python, or one without pip
    (mine / "pyvenv.cfg").touch()
    ended = checkout("cpu", O1CODER_VENV=str(mine))
    assert ended.returncode == 2
    assert "did not make" in ended.stderr
    assert (mine / "pyvenv.cfg").exists()


def test_the_stack_that_is_there_stays_unless_another_is_asked_for(checkout, tmp_path):
    script(tmp_path / "bin" / "nvidia-smi", "exit 0\n")
    assert checkout("cpu").returncode == 0
    venv = tmp_path / "checkout" / ".venv"
    (venv / "package").touch()
    assert checkout("").returncode == 0
    assert (venv / "package").exists()


def test_a_graphics_card_decides_the_first_stack(checkout, tmp_path):
    script(tmp_path / "bin" / "nvidia-smi", "exit 0\n")
    assert checkout("").returncode == 0
    assert (tmp_path / "checkout" / ".venv" / ".o1coder-stack").read_text() == "gpu"
