"""Every attack with one layer of a cell switched off: another layer contains it.

The verdict may be another one there (without the filter a forbidden call fails instead of killing); what counts is that
no harm is done and no answer forged.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from attacks import Attack, covers
from sandbox_bench import Bench
from surroundings import Surroundings
from test_attacks import ATTACKS, strike

from sandbox import SandboxUnavailableError, Verdict

pytestmark = pytest.mark.slow  # starts processes all the time

NAMESPACES = ("network", "ipc", "uts", "pid")
LAYERS = ("mount", "landlock", "seccomp", "cell_filter", "scratch_user", *NAMESPACES, "rlimits", "lookout")
# Whether these hold does not hang on where a program runs; they are tried without the layers that could matter.
TIME_LAYERS = ("seccomp", "cell_filter", "rlimits", "pid")


@pytest.fixture(scope="module", params=LAYERS)
def thinner(request: pytest.FixtureRequest, around: Surroundings) -> Iterator[tuple[str, Bench]]:
    """A cell without one layer, and that layer's name."""
    try:
        made = Bench(level=3, disabled_layers=[request.param])
    except SandboxUnavailableError as error:
        pytest.skip(str(error))
    yield request.param, made
    assert made.pool.stats().sandbox_errors == 0
    made.close()


def matters(layer: str, attack: Attack) -> bool:
    """Whether the layer could have a part in how the attack ends."""
    if Verdict.TIME_LIMIT in attack.verdicts and layer not in TIME_LAYERS:
        return False
    return attack.outside or layer not in NAMESPACES


@covers(98)
@pytest.mark.parametrize("number", sorted({attack.number for attack in ATTACKS}))
def test_one_layer_less(thinner: tuple[str, Bench], around: Surroundings, number: int) -> None:
    layer, bench = thinner
    cell = bench.cell
    for attack in ATTACKS:
        if attack.number != number or not matters(layer, attack):
            continue
        result, harm = strike(bench, attack, around)
        assert not (attack.forging and result.verdict is Verdict.ACCEPTED), attack
        assert not harm, (attack, result)
    assert bench.script("print('ok')").verdict is Verdict.ACCEPTED
    assert bench.cell is cell and bench.pool.stats().retries == 0


def test_the_layer_is_really_off(thinner: tuple[str, Bench]) -> None:
    layer, bench = thinner
    layers = bench.pool.isolation.layers
    if layer in NAMESPACES:
        assert layers["namespaces"].startswith("enforced") and layer not in layers["namespaces"]
    else:
        assert layers[layer].startswith("disabled")


def test_no_user_namespace_in_a_cell(around: Surroundings) -> None:
    """What a program could do first where neither the filter nor Landlock stops it: become privileged elsewhere."""
    try:
        bench = Bench(level=3, disabled_layers=["seccomp", "cell_filter", "landlock"])
    except SandboxUnavailableError as error:
        pytest.skip(str(error))
    try:
        if "no nested ones" not in bench.pool.isolation.layers["namespaces"]:
            pytest.skip("this machine does not let a cell limit namespaces")
        source = "import ctypes\nprint(ctypes.CDLL(None).unshare(0x10000000))"
        assert bench.stdout(source).stdout == "-1\n"
    finally:
        bench.close()


def test_what_a_run_leaves_behind_ends_with_it(around: Surroundings) -> None:
    """Without the filter a run can start processes; they end before the next one starts."""
    try:
        bench = Bench(level=3, disabled_layers=["seccomp", "cell_filter"])
    except SandboxUnavailableError as error:
        pytest.skip(str(error))
    try:
        before = around.processes()
        source = "import os, time\nif os.fork() == 0:\n  os.setsid()\n  time.sleep(30)\nprint('ok')"
        assert bench.script(source).verdict is Verdict.ACCEPTED
        assert around.processes() == before
    finally:
        bench.close()
