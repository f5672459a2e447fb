"""Fixtures for tests of learners."""

from pathlib import Path

import pytest
from made_learning import write_tiny_llama


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a small Llama with random weights."""
    path = tmp_path_factory.mktemp("tiny-llama")
    write_tiny_llama(path)
    return path
