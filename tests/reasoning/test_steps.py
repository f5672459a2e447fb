"""The step grammar: what is rendered parses back, what is malformed is told, masks cover what was sampled."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasoning.problems import demonstrations
from reasoning.records import Action, Step
from reasoning.steps import (
    BEGIN,
    END,
    GrammarError,
    StepCodec,
    check_order,
    extract_program,
    header,
    legal_actions,
    parse,
    read_sample,
    readable,
    render,
)

line = st.text(
    st.characters(codec="ascii", exclude_characters="\r\n`<", categories=("L", "N", "P", "Zs")), min_size=1
).filter(str.strip)
body = st.lists(line, min_size=1, max_size=4).map("\n".join)
code = body.map(lambda text: f"```python\n{text.rstrip()}\n```")


@st.composite
def paths(draw):
    steps = [Step(action=Action.DEFINE, text=draw(body))]
    steps += [Step(action=Action.REFINE, text=draw(body)) for _ in range(draw(st.integers(0, 3)))]
    if draw(st.booleans()):
        steps.append(Step(action=Action.CODE, text=draw(code)))
    return steps


@given(paths())
def test_rendered_steps_parse_back(steps):
    assert list(parse(render(steps))) == steps


@given(paths())
def test_readable_steps_are_the_rendered_ones_without_markers(steps):
    shown = [readable(number, step) for number, step in enumerate(steps, start=1)]
    assert not any(BEGIN in text or END in text for text in shown)
    again = "\n".join(f"{BEGIN}\n{text}\n{END}" for text in shown)
    assert [s.text.rstrip() for s in parse(again)] == [s.text.rstrip() for s in steps]


def test_every_shipped_demonstration_survives_the_grammar():
    for demonstration in demonstrations():
        assert parse(render(demonstration.steps)) == demonstration.steps


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("hello", "no header"),
        (f"{BEGIN}\n### Step 1: <Action 1> Define\nbody", "no <Step_End>"),
        (f"{BEGIN}\n### Step 2: <Action 1> Define\nbody\n{END}", "header says 2"),
        (f"{BEGIN}\n### Step 1: <Action 2> Refine\nbody\n{END}", "not legal"),
        (render([Step(action=Action.DEFINE, text="a")]) + "junk", "no header"),
        (
            render([Step(action=Action.DEFINE, text="a"), Step(action=Action.CODE, text="```python\nx\n```")])
            + header(3, Action.REFINE)
            + f"b\n{END}",
            "nothing may follow",
        ),
    ],
)
def test_malformed_texts_are_told(text, complaint):
    with pytest.raises(GrammarError, match=complaint):
        parse(text)


@given(st.integers(2, 8))
def test_legal_actions_lead_to_code_at_the_last_step(max_depth):
    assert legal_actions(0, max_depth) == (Action.DEFINE,)
    assert legal_actions(max_depth - 1, max_depth) == (Action.CODE,)
    for depth in range(1, max_depth - 1):
        assert legal_actions(depth, max_depth) == (Action.REFINE, Action.CODE)
        assert legal_actions(depth, max_depth, room=False) == (Action.CODE,)
    assert legal_actions(0, max_depth, room=False) == (Action.DEFINE,)
    for depth in (-1, max_depth):
        with pytest.raises(ValueError, match="depth"):
            legal_actions(depth, max_depth)


def test_check_order_takes_what_legal_actions_offer():
    check_order([Action.DEFINE, Action.REFINE, Action.REFINE, Action.CODE])
    with pytest.raises(GrammarError):
        check_order([Action.DEFINE, Action.DEFINE])


@pytest.mark.parametrize(
    ("action", "sampled", "truncated", "failure"),
    [
        (Action.DEFINE, f"do it\n{END}", False, ""),
        (Action.DEFINE, "do it", False, "no end marker"),
        (Action.DEFINE, f"\n{END}", False, "empty step"),
        (Action.REFINE, f"a {BEGIN} b {END}", False, "a step inside a step"),
        (Action.REFINE, "x" * 100_000, True, "cut off by the length limit"),
        (Action.CODE, "x = 1\n```", False, ""),
        (Action.CODE, "x = 1", False, ""),
        (Action.CODE, "\n```", False, "no program"),
        (Action.CODE, "x = 1", True, "cut off by the length limit"),
    ],
)
def test_sampled_texts_become_steps_or_recorded_failures(action, sampled, truncated, failure):
    step, why = read_sample(action, sampled, truncated=truncated)
    assert why == failure
    assert (step is None) == bool(failure)


def test_the_first_of_two_code_blocks_is_the_program():
    assert extract_program("```python\na = 1\n```\ntext\n```python\nb = 2\n```") == "a = 1\n"
    assert extract_program("no block") is None


def test_demonstration_ids_are_headers_and_bodies_with_only_bodies_in_the_loss():
    codec = StepCodec(lambda text: [ord(c) for c in text])
    demonstration = demonstrations()[0]
    ids, mask = codec.demonstration(demonstration)
    text = "".join(chr(i) for i in ids)
    assert render(demonstration.steps).startswith(text)
    learned = "".join(chr(i) for i, m in zip(ids, mask, strict=True) if m)
    assert BEGIN not in learned
    assert "### Step" not in learned
    assert extract_program(demonstration.steps[-1].text).strip() in learned


def test_the_choice_of_an_action_is_one_token_after_a_shared_prefix():
    codec = StepCodec(lambda text: [ord(c) for c in text])
    shared, tokens = codec.choice(2)
    assert set(tokens) == {Action.REFINE, Action.CODE}
    for action, token in tokens.items():
        assert codec.header_ids(2, action)[: len(shared) + 1] == (*shared, token)
