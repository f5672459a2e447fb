"""Bundles onto machines: never more than there is, whole GPUs for who needs them, and what is missing is said."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.placement import Bundle, Machine, Sizes, nearest, place

GB = 10**9


def gpu(name, count=8, cpus=64, memory=80 * GB):
    return Machine(name, cpus, count, 900 * GB, memory)


def test_tensor_parallel_stays_on_one_machine():
    engine = Bundle("rollout", gpus=4)
    found = place([engine] * 3, [gpu("a", 6), gpu("b", 4)])
    assert Counter(name for _, name in found.placed) == {"a": 1, "b": 1}
    assert [r.why for r in found.refused] == ["a lacks 4 GPUs of which 2 are free"]


def test_shares_fill_one_gpu_and_leave_whole_ones():
    shares = [Bundle("prm", gpus=0.5)] * 2
    found = place([*shares, Bundle("rollout", gpus=1)], [gpu("a", 2)])
    assert found.fits
    assert not place([*shares, Bundle("rollout", gpus=2)], [gpu("a", 2)]).fits


def test_memory_of_a_gpu_is_shared_too():
    halves = [Bundle("rollout", gpus=0.5, gpu_memory=50 * GB)] * 2
    assert place(halves, [gpu("a", 2)]).fits
    (refused,) = place(halves, [gpu("a", 1)]).refused
    assert refused.why == "a lacks 50.0 GB on each GPU, of which 30.0 GB are free at most"


def test_machines_without_gpus_take_what_needs_none():
    found = place([Bundle("sandbox", cpus=2)] * 4 + [Bundle("rollout", gpus=1)], [gpu("a", 1, cpus=8), Machine("b", 8)])
    assert {name for b, name in found.placed if b.role == "sandbox"} == {"b"}


@pytest.mark.parametrize(
    ("bundle", "why"),
    [
        (Bundle("sandbox", cpus=5), "a lacks 5 CPUs of which 4 are free"),
        (Bundle("learner", memory=9 * GB), "a lacks 9.0 GB of memory of which 8.0 GB are free"),
        (Bundle("learner", gpus=1), "a lacks 1 GPUs of which 0 are free"),
        (Bundle("rollout", custom=(("spot", 2),)), "a lacks 2 spot of which 1 are free"),
    ],
)
def test_what_is_missing_is_said(bundle, why):
    (refused,) = place([bundle], [Machine("a", 4, 0, 8 * GB, 0, (("spot", 1),))]).refused
    assert refused.why == why
    assert place([bundle], []).refused[0].why == "there is no machine"


def test_a_share_of_several_gpus_is_none():
    with pytest.raises(ValueError, match=r"rollout GPUs: got 1\.5; use a share of one, or a whole number"):
        Bundle("rollout", gpus=1.5)


def test_roles_are_counted():
    found = place([Bundle("rollout", gpus=1)] * 3 + [Bundle("sandbox", cpus=1)], [gpu("a", 2)])
    assert found.by_role() == [("rollout", 3, 2, {"a": 2}), ("sandbox", 1, 1, {"a": 1})]


BUNDLES = st.lists(
    st.builds(
        Bundle,
        role=st.sampled_from(["rollout", "learner", "sandbox"]),
        cpus=st.integers(0, 6),
        gpus=st.sampled_from([0, 0.25, 0.5, 1, 2, 4]),
        memory=st.integers(0, 9),
        gpu_memory=st.integers(0, 9),
        custom=st.sampled_from([(), (("spot", 1),)]),
    ),
    max_size=12,
)
MACHINES = st.lists(
    st.builds(
        Machine, name=st.uuids().map(str), cpus=st.integers(0, 16), gpus=st.integers(0, 8), memory=st.integers(0, 30),
        gpu_memory=st.integers(0, 16), custom=st.sampled_from([(), (("spot", 2),)]),
    ),
    max_size=4,
)  # fmt: skip


@given(BUNDLES, MACHINES)
def test_nothing_is_given_twice_and_nobody_is_forgotten(bundles, machines):
    found = place(bundles, machines)
    assert Counter(b for b, _ in found.placed) + Counter(r.bundle for r in found.refused) == Counter(bundles)
    for machine in machines:
        mine = [b for b, name in found.placed if name == machine.name]
        assert sum(b.cpus for b in mine) <= machine.cpus
        assert sum(b.memory for b in mine) <= machine.memory
        assert sum(b.gpus for b in mine) <= machine.gpus
        assert sum(b.gpu_memory * max(1, int(b.gpus)) for b in mine if b.gpus) <= machine.gpus * machine.gpu_memory
        assert sum(count for b in mine for _, count in b.custom) <= sum(count for _, count in machine.custom)
    assert all(r.why for r in found.refused)
    assert place(bundles, machines) == found


def sized(sizes):
    """A run: engines of one GPU and learner ranks of one, together on it where they are shared."""
    share = 0.5 if sizes.shared else 1
    return [
        *[Bundle("rollout", gpus=share)] * sizes.rollouts,
        *[Bundle("learner", gpus=share)] * sizes.ranks,
        *[Bundle("sandbox", cpus=4)] * sizes.sandboxes,
    ]


@pytest.mark.parametrize(
    ("machines", "found"),
    [
        ([gpu("a", 8)], Sizes(6, 8, 2)),
        ([gpu("a", 5)], Sizes(3, 8, 2)),
        ([gpu("a", 8, cpus=20)], Sizes(6, 4, 2)),
        ([gpu("a", 2)], Sizes(2, 8, 2, shared=True)),
        ([gpu("a", 1, cpus=4)], Sizes(1, 1, 1, shared=True)),
        ([Machine("a", 64)], None),
        ([], None),
    ],
)
def test_the_nearest_sizes_that_fit(machines, found):
    got = nearest(Sizes(6, 8, 2), sized, machines)
    assert (got and got[0]) == found
    if got:
        assert got[1].fits


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), MACHINES)
def test_what_is_found_fits_and_is_no_more_than_was_asked_for(rollouts, sandboxes, ranks, machines):
    got = nearest(Sizes(rollouts, sandboxes, ranks), sized, machines)
    whole = place(sized(Sizes(rollouts, sandboxes, ranks)), machines)
    if got is None:
        assert not whole.fits
        return
    sizes, placement = got
    assert placement.fits and 1 <= sizes.rollouts <= rollouts and sizes.sandboxes <= sandboxes and sizes.ranks <= ranks
    if whole.fits:
        assert sizes == Sizes(rollouts, sandboxes, ranks)
