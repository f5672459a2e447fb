"""A pool per isolation level that this machine has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sandbox_bench import Bench

from sandbox import SandboxUnavailableError

LEVELS = (3, 2, 1)


@pytest.fixture(scope="session", params=LEVELS, ids=["cell", "landlock", "seccomp"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """A pool at each level that this machine has."""
    try:
        made = Bench(level=request.param)
    except SandboxUnavailableError as error:
        pytest.skip(str(error))
    yield made
    assert made.pool.stats().sandbox_errors == 0
    made.close()


@pytest.fixture(scope="session")
def best() -> Iterator[Bench]:
    """A pool at the best level that this machine has."""
    made = Bench()
    yield made
    made.close()
