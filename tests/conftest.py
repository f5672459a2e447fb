"""Fixtures for tests of the real parts."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

# A busy machine takes longer for one example, which says nothing of the code; pytest's own timeout ends what hangs.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
# Before anything imports ray: transformers does.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(16))

SHARED_DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


@pytest.fixture(scope="session")
def model() -> Path:
    """SmolLM2-135M-Instruct in Hugging Face format, converted once."""
    from cluster.models import resolve

    return resolve("smollm2-135m")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real benchmark rows, where they lie beside the checkout."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no benchmark data at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A real Ray cluster of this machine's two cores."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=10**8)
    yield
    ray.shutdown()
