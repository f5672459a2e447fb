"""The folders of an engine's sockets: gone with their process, however it ends."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from actors.sockets import PREFIX, SocketFolder, remove_abandoned


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def test_a_folder_is_there_until_it_is_removed():
    folder = SocketFolder()
    (folder.path / "socket").touch()
    remove_abandoned(0.0)
    assert folder.path.name.startswith(PREFIX) and list(folder.path.iterdir())
    folder.remove()
    folder.remove()
    assert not folder.path.exists()


def test_folders_of_killed_processes_are_removed_once_they_are_old_enough(temporary):
    code = (
        "import time; from actors.sockets import SocketFolder; print(SocketFolder().path, flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=Path.cwd())
    left = Path(child.stdout.readline().strip())
    try:
        remove_abandoned(0.0)
        assert left.exists()
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait(20)
        child.stdout.close()
    other = temporary / f"{PREFIX}file"
    other.touch()
    remove_abandoned(60.0)
    assert left.exists()
    os.utime(left, (0, 0))
    mine = SocketFolder()
    assert not left.exists() and mine.path.exists() and other.exists()
    mine.remove()
