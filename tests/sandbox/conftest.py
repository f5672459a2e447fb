"""A pool per isolation level that this machine has; a server and its client."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fusion_bench import start, stop
from sandbox_bench import Bench

from sandbox import SandboxFusionBackend, SandboxUnavailableError

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


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    process, url = start("--slots", "2")
    yield url
    assert stop(process) == 0


@pytest.fixture(scope="module")
def remote(server: str, best: Bench) -> Iterator[SandboxFusionBackend]:
    """A client on the event loop of `best`."""

    async def made() -> SandboxFusionBackend:
        backend = SandboxFusionBackend(server)
        await backend.start()
        return backend

    backend = best.call(made())
    yield backend
    best.call(backend.aclose())
