"""Where everything goes, decided before anything starts: what a run asks for, put onto what the cluster has.

A bundle stands on one machine, and its GPUs too (tensor parallel needs their links); a share of a GPU is of one GPU.
Bundles go in the order of how hard they are to place, each onto the fullest machine that still takes it, so that whole
machines stay free for what needs them. Ray places by the same resources; this says beforehand what it would wait for in
silence. Pure: no Ray.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

GPU_SHARE = 1e-6
"""Shares of a GPU that differ by less are equal."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """What one actor asks of one machine. `gpus`: whole ones, or a share of one; `gpu_memory`: bytes on each of them;
    `memory`: bytes on the machine. `custom`: further resources by name, whole numbers."""

    role: str
    cpus: float = 0.0
    gpus: float = 0.0
    memory: int = 0
    gpu_memory: int = 0
    custom: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(f"{self.role} GPUs: got {self.gpus!r}; use a share of one, or a whole number")


@dataclass(frozen=True, slots=True)
class Machine:
    """What a machine has free. `gpu_memory`: bytes free on each GPU."""

    name: str
    cpus: float
    gpus: int = 0
    memory: int = 0
    gpu_memory: int = 0
    custom: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """A bundle that no machine takes. `why`: what the machine that comes nearest lacks."""

    bundle: Bundle
    why: str


@dataclass(frozen=True, slots=True)
class Placement:
    """Each bundle with the name of its machine, in the order they were asked for; and those that found none."""

    placed: tuple[tuple[Bundle, str], ...]
    refused: tuple[Refused, ...]

    @property
    def fits(self) -> bool:
        """Whether everything found a place."""
        return not self.refused

    def by_role(self) -> list[tuple[str, int, int, dict[str, int]]]:
        """Of each role: how many are asked for, how many have a place, and how many are on which machine."""
        asked = Counter(b.role for b, _ in self.placed) + Counter(r.bundle.role for r in self.refused)
        rows = []
        for role, count in asked.items():
            machines = Counter(name for bundle, name in self.placed if bundle.role == role)
            rows.append((role, count, machines.total(), dict(machines)))
        return rows


@dataclass(slots=True)
class _Free:
    """What is left of a machine. `gpus`: of each GPU the share and the bytes that are left."""

    machine: Machine
    cpus: float
    memory: int
    gpus: list[tuple[float, int]]
    custom: Counter[str] = field(default_factory=Counter)

    def lacks(self, bundle: Bundle) -> str:
        """What it lacks for a bundle; "" where it takes it."""
        if bundle.cpus > self.cpus + GPU_SHARE:
            return f"{bundle.cpus:g} CPUs of which {self.cpus:g} are free"
        if bundle.memory > self.memory:
            return f"{_gb(bundle.memory)} of memory of which {_gb(self.memory)} are free"
        for name, count in bundle.custom:
            if count > self.custom[name]:
                return f"{count} {name} of which {self.custom[name]} are free"
        if bundle.gpus and len(self._chosen(bundle)) < math.ceil(bundle.gpus):
            roomy = [share for share, left in self.gpus if left >= bundle.gpu_memory]
            if self.gpus and not roomy:
                most = max(left for _, left in self.gpus)
                return f"{_gb(bundle.gpu_memory)} on each GPU, of which {_gb(most)} are free at most"
            return f"{bundle.gpus:g} GPUs of which {sum(roomy):g} are free"
        return ""

    def take(self, bundle: Bundle) -> None:
        """Give a bundle its place."""
        self.cpus -= bundle.cpus
        self.memory -= bundle.memory
        self.custom.subtract(dict(bundle.custom))
        for i in self._chosen(bundle):
            share, left = self.gpus[i]
            self.gpus[i] = (share - min(1.0, bundle.gpus), left - bundle.gpu_memory)

    def _chosen(self, bundle: Bundle) -> list[int]:
        """The GPUs that it would get, those with least left first: whole ones stay whole."""
        if not bundle.gpus:
            return []
        need = min(1.0, bundle.gpus)
        found = [
            i for i, (share, left) in enumerate(self.gpus) if share + GPU_SHARE >= need and left >= bundle.gpu_memory
        ]
        return sorted(found, key=lambda i: self.gpus[i])[: math.ceil(bundle.gpus)]


def place(bundles: Sequence[Bundle], machines: Iterable[Machine]) -> Placement:
    """A place for as many of the bundles as can be found."""
    free = [
        _Free(m, m.cpus, m.memory, [(1.0, m.gpu_memory)] * m.gpus, Counter(dict(m.custom)))
        for m in sorted(machines, key=lambda m: (m.gpus, m.cpus, m.memory, m.name))
    ]
    order = sorted(range(len(bundles)), key=lambda i: (-bundles[i].gpus, -bundles[i].cpus, -bundles[i].memory, i))
    where: dict[int, str] = {}
    refused: list[Refused] = []
    for i in order:
        bundle = bundles[i]
        taker = min((f for f in free if not f.lacks(bundle)), key=_fullness, default=None)
        if taker is None:
            nearest = max(free, key=lambda f: _nearness(f, bundle), default=None)
            why = f"{nearest.machine.name} lacks {nearest.lacks(bundle)}" if nearest else "there is no machine"
            refused.append(Refused(bundle, why))
            continue
        taker.take(bundle)
        where[i] = taker.machine.name
    return Placement(tuple((bundles[i], where[i]) for i in sorted(where)), tuple(refused))


def _fullness(free: _Free) -> tuple[float, float, int]:
    return (sum(share for share, _ in free.gpus), free.cpus, free.memory)


def _nearness(free: _Free, bundle: Bundle) -> tuple[bool, float, float, int]:
    return (not bundle.gpus or bool(free.gpus), sum(share for share, _ in free.gpus), free.cpus, free.memory)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of what a run asks for; what may be less of it is lowered to fit. `shared`: engine and learner on the
    same GPU, in turns."""

    rollouts: int
    sandboxes: int
    ranks: int
    shared: bool = False


def nearest(
    asked: Sizes, bundles: Callable[[Sizes], Sequence[Bundle]], machines: Sequence[Machine]
) -> tuple[Sizes, Placement] | None:
    """The sizes nearest to those that were asked for that fit, with their placement: as many rollout workers as can be
    had, at least one of them; then fewer sandboxes, at least one; then engine and learner on one GPU; then fewer ranks
    of the learner. None where nothing does."""
    for ranks in range(asked.ranks, 0, -1):
        for shared in sorted({asked.shared, True}):
            for sandboxes in _fewer(asked.sandboxes):
                found = _most_rollouts(
                    replace(asked, ranks=ranks, shared=shared, sandboxes=sandboxes), bundles, machines
                )
                if found is not None:
                    return found
    return None


def _fewer(count: int) -> list[int]:
    """The count and its halves, down to 1."""
    found = [count]
    while found[-1] > 1:
        found.append(found[-1] // 2)
    return found


def _most_rollouts(
    sizes: Sizes, bundles: Callable[[Sizes], Sequence[Bundle]], machines: Sequence[Machine]
) -> tuple[Sizes, Placement] | None:
    """With as many rollout workers as fit: what fits with some fits with fewer."""
    low, high = 0, sizes.rollouts
    best: tuple[Sizes, Placement] | None = None
    while low < high:
        middle = (low + high + 1) // 2
        tried = replace(sizes, rollouts=middle)
        found = place(bundles(tried), machines)
        if found.fits:
            best, low = (tried, found), middle
        else:
            high = middle - 1
    return best


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
