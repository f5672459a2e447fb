"""Values as text: what Python reads back, and the same in every process."""

import os
import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from reasoning.literals import literal

ATOMS = st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.binary(max_size=3)
KEYS = ATOMS | st.tuples(ATOMS)


def nested(leaves):
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.lists(inner, max_size=3).map(tuple)
            | st.dictionaries(KEYS, inner, max_size=3)
        ),
        max_leaves=8,
    )


@given(nested(ATOMS | st.sets(KEYS, max_size=4) | st.frozensets(KEYS, max_size=3)))
def test_it_is_read_back(value):
    assert eval(literal(value)) == value


@given(nested(ATOMS))
def test_without_sets_it_is_repr(value):
    assert literal(value) == repr(value)


def test_prompts_are_the_same_in_every_process():
    """Else a search could not be gone on with: its log holds the prompt."""
    code = (
        "from reasoning.problems import bundled; from reasoning.prompts import question_text; "
        "print([question_text(p, p.tests) for p in bundled()])"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(said) == 1
