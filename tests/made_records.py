"""Records of every shape for tests of what becomes of them, and a problem as a row of a file."""

from hypothesis import strategies as st

from reasoning.records import Action, Path, StepRecord
from sandbox import Verdict

PROBLEM_ROW = {
    "id": "mine/double",
    "question": "Double it.",
    "entry_point": "double",
    "references": ["def double(n):\n    return 2 * n\n"],
    "tests": [{"case": {"kind": "call", "args": [2], "expected": 4}, "shown": True}],
}

ids = st.lists(st.integers(0, 2**31 - 1), max_size=5).map(tuple)
text = st.text(st.characters(codec="utf-8"), max_size=20)
logprobs = st.floats(-50, 0, width=32)  # as the store keeps them
unit = st.floats(0, 1)
steps = st.builds(
    StepRecord,
    action=st.sampled_from(Action),
    header_ids=ids,
    token_ids=ids,
    logprobs=st.lists(logprobs, max_size=5).map(tuple),
    text=text,
    weight_spans=st.lists(st.tuples(*[st.integers(0, 99)] * 3), max_size=2).map(tuple),
    value=st.none() | unit,
    passed=st.integers(0, 9),
    sampled=st.integers(0, 9),
)
paths = st.builds(
    Path,
    problem_id=text,
    tree_id=text,
    prompt_ids=ids,
    steps=st.lists(steps, max_size=3).map(tuple),
    program=st.none() | text,
    verdict=st.none() | st.sampled_from(Verdict),
    compiles=st.booleans(),
    tests_passed=st.integers(0, 9),
    tests_total=st.integers(0, 9),
    value=st.none() | unit,
    temperature=st.floats(0.1, 2),
)
