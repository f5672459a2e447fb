"""A pool per isolation level, the surroundings that no run may touch, a server and its client."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from fusion_bench import start, stop
from sandbox_bench import Bench
from surroundings import SECRET_VARIABLE, Surroundings

from sandbox import SandboxFusionBackend, SandboxUnavailableError

LEVELS = (3, 2, 1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is tried at every level takes its time: at the lower ones it is tried in slow runs."""
    for item in items:
        given = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        if given.get("bench", LEVELS[0]) != LEVELS[0]:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def around() -> Iterator[Surroundings]:
    """What lies outside of every run; its secret is in the environment of this process, which owns the pools."""
    made = Surroundings()
    os.environ[SECRET_VARIABLE] = made.token
    yield made
    del os.environ[SECRET_VARIABLE]
    made.close()


@pytest.fixture(scope="session", params=LEVELS, ids=["cell", "landlock", "seccomp"])
def bench(request: pytest.FixtureRequest, around: Surroundings) -> Iterator[Bench]:
    """A pool at each level that this machine has."""
    try:
        made = Bench(level=request.param)
    except SandboxUnavailableError as error:
        pytest.skip(str(error))
    yield made
    assert made.pool.stats().sandbox_errors == 0
    made.close()


@pytest.fixture(scope="session")
def best(around: Surroundings) -> Iterator[Bench]:
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
