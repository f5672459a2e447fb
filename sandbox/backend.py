"""What every place that judges programs offers, and the errors of the places that are not this machine.

`LocalPool` runs programs here; `SandboxFusionBackend` asks a server. Both satisfy `SandboxBackend`.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from sandbox.records import Submission, SuiteResult


@runtime_checkable
class SandboxBackend(Protocol):
    """Judges submissions until it is closed."""

    async def judge(self, submission: Submission) -> SuiteResult:
        """Run every case and compare. A run that the infrastructure loses is a case with verdict sandbox_error."""
        ...

    async def aclose(self) -> None:
        """Free what the backend holds; calls in flight and later ones raise PoolClosedError."""
        ...


class RemoteSandboxError(RuntimeError):
    """A remote sandbox that cannot be used as it is configured: asking again would not help.

    `url` is its address without credentials, `status` the HTTP status, None when there was no answer.
    """

    def __init__(self, url: str, reason: str, status: int | None = None) -> None:
        self.url = url
        self.status = status
        super().__init__(f"sandbox server {url}: {reason}")


class UnsupportedCaseError(ValueError):
    """A case that a remote sandbox cannot judge safely; nothing of its submission was sent."""
