"""Alarms: what is normal raises none, each thing that goes wrong raises its own."""

import math
from dataclasses import replace

import pytest
from made_paths import path, step

from reasoning.guards import Bounds, crossed, shape

BOUNDS = Bounds(mismatch_kl=0.1, ess=0.5, entropy=0.05, holdout_gap=0.2, duplicates=0.5, drift=0.5)
FINE = {
    "mismatch_kl": 0.1, "ess": 0.5, "entropy": 0.05, "holdout_gap": 0.2, "duplicates": 0.5, "path_tokens": 90.0,
    "path_steps": 3.0,
}  # fmt: skip
BEFORE = {"path_tokens": 60.0, "path_steps": 3.0}


def test_what_is_on_the_bound_is_normal():
    assert crossed(FINE, BEFORE, BOUNDS) == {}
    assert crossed({}, BEFORE, BOUNDS) == {}


@pytest.mark.parametrize(
    ("name", "value", "alarm"),
    [
        ("mismatch_kl", 0.11, "mismatch_kl"),
        ("ess", 0.49, "ess"),
        ("entropy", 0.0, "entropy"),
        ("entropy", math.nan, "entropy"),
        ("mismatch_kl", math.inf, "mismatch_kl"),
        ("mismatch_kl", math.nan, "mismatch_kl"),
        ("holdout_gap", 0.21, "holdout_gap"),
        ("duplicates", 0.51, "duplicates"),
        ("path_tokens", 90.1, "path_tokens_drift"),
        ("path_tokens", 29.0, "path_tokens_drift"),
        ("path_steps", 1.0, "path_steps_drift"),
    ],
)
def test_each_bound_has_its_alarm(name, value, alarm):
    found = crossed({**FINE, name: value}, BEFORE, BOUNDS)
    assert list(found) == [alarm]
    measured, says = found[alarm]
    expected = value / BEFORE[name] - 1 if alarm.endswith("drift") else value
    assert measured == pytest.approx(expected, nan_ok=True)
    assert f"{value:.1f}" in says or f"{value:.3f}" in says


def test_the_first_round_has_nothing_to_drift_from():
    assert crossed({**FINE, "path_tokens": 9e9}, {}, BOUNDS) == {}


def test_a_bound_can_be_lifted():
    none = replace(BOUNDS, mismatch_kl=math.inf, ess=0.0, drift=math.inf)
    assert crossed({"mismatch_kl": 99.0, "ess": 0.0, "path_steps": 99.0}, BEFORE, none) == {}


def test_the_shape_of_paths():
    one, other = path("a"), path("a", steps=[step(3, range(9)).model_copy(update={"text": "else"})], program=None)
    found = shape([one, one, other, path("b")])
    assert found == {"path_tokens": 6.0, "path_steps": 1.75, "duplicates": 0.25, "no_program": 0.25}
    assert shape([]) == {}
