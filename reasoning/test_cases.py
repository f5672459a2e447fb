"""Test cases as text: the template of the test case generator, its parser, and its training pairs (method section 2).

A generated text holds cases of the form

    Input:
    [3, 1, 2], True
    Output:
    [1, 2, 3]

where a function's input is its argument list and its output a Python literal; a program's are its stdin and stdout.
"""

from __future__ import annotations

import ast
import itertools
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reasoning.literals import literal
from reasoning.prompts import Message, example_text
from reasoning.records import Origin, Problem, ProblemTest, TextPair
from reasoning.suites import input_key, split_given
from sandbox import (
    AssertCase,
    CallCase,
    CheckerProgram,
    ExactValue,
    ExpressionCase,
    StdioCase,
    TokenComparator,
    encode_value,
)

SYSTEM_TCG = "You write test cases for programs."
CASES_PER_PROMPT = 3
OPENING = "Input:\n"
"""How every completion begins."""
MAX_CASE_CHARACTERS = 2000

_CASE = re.compile(r"Input:\n(.*?)\nOutput:\n(.*?)(?=\n+Input:\n|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ParsedCase:
    """One case of a generated text. `output` is None where it cannot be read; the input can still be executed.

    `args`: a function's arguments, None for a program; `stdin`: a program's input.
    """

    args: tuple[Any, ...] | None
    stdin: str
    output: Any
    output_ok: bool

    @property
    def key(self) -> str:
        return literal(self.args) if self.args is not None else self.stdin


def tcg_messages(problem: Problem, code: str | None) -> list[Message]:
    """The generator's prompt: instruction, problem, code part. `code` None: question-only mode."""
    parts = [f"Write {CASES_PER_PROMPT} new test cases for this problem.", problem.question.strip()]
    for test in _example(problem):
        parts.append("Example:\n" + example_text(test, problem.entry_point))
    if code is not None:
        parts.append(f"Code:\n```python\n{code.strip()}\n```")
    return [{"role": "system", "content": SYSTEM_TCG}, {"role": "user", "content": "\n\n".join(parts)}]


def _example(problem: Problem) -> tuple[ProblemTest, ...]:
    """The test that the prompt shows, if any."""
    return problem.shown_tests[:1]


def renderable(test: ProblemTest) -> bool:
    """Whether `render_cases` can write the test: plain calls and stdin programs of modest size."""
    case = test.case
    if isinstance(case, ExpressionCase | AssertCase) or (isinstance(case, CallCase) and case.kwargs):
        return False
    try:
        given, output = input_text(test), output_text(test)
    except ValueError:  # a whole number of thousands of digits
        return False
    if len(given) + len(output) > MAX_CASE_CHARACTERS:
        return False
    if isinstance(case, CallCase):
        return _arguments(given) is not None and _literal(output) is not _UNREADABLE
    words = ("Input:", "Output:")
    return not case.stdin.startswith("\n") and not any(w in t for w in words for t in (given, output))


def input_text(test: ProblemTest) -> str:
    case = test.case
    if isinstance(case, StdioCase):
        return case.stdin.strip("\n")
    assert isinstance(case, CallCase)
    return ", ".join(literal(a) for a in case.args)


def output_text(test: ProblemTest) -> str:
    case = test.case
    assert isinstance(case, StdioCase | CallCase)
    return case.expected.strip("\n") if isinstance(case, StdioCase) else literal(case.expected)


def render_cases(inputs: Sequence[str], outputs: Sequence[str]) -> str:
    """The completion that the generator is trained on."""
    return "\n\n".join(f"Input:\n{i}\nOutput:\n{o}" for i, o in zip(inputs, outputs, strict=True))


def parse_cases(text: str, problem: Problem) -> list[ParsedCase]:
    """The cases of a generated text; what has no readable input is left out, repeated inputs count once."""
    found: dict[str, ParsedCase] = {}
    for match in _CASE.finditer(text):
        raw_input, raw_output = match[1].strip("\n"), match[2].strip("\n").rstrip(" \t\r\n")
        if len(raw_input) + len(raw_output) > MAX_CASE_CHARACTERS:
            continue
        if problem.entry_point is None:
            case = ParsedCase(None, raw_input + "\n", raw_output, bool(raw_output))
        else:
            args = _arguments(raw_input)
            if args is None:
                continue
            output = _literal(raw_output)
            case = ParsedCase(args, "", None if output is _UNREADABLE else output, output is not _UNREADABLE)
        found.setdefault(case.key, case)
    return list(found.values())


def new_cases(completion: str, problem: Problem) -> list[ParsedCase]:
    """What counts of a completion of `OPENING`: as many cases as were asked for, without copies of the example that
    the prompt shows, whose output is there to be read."""
    cases = parse_cases(OPENING + completion, problem)[:CASES_PER_PROMPT]
    return [case for case in cases if not any(_asks_the_same(case, test) for test in _example(problem))]


def _asks_the_same(case: ParsedCase, test: ProblemTest) -> bool:
    match test.case:
        case StdioCase(stdin=stdin):
            return case.args is None and case.stdin.rstrip() == stdin.rstrip()
        case CallCase(args=args, kwargs=kwargs):
            return case.args is not None and not kwargs and literal(case.args) == literal(tuple(args))
    return False


_UNREADABLE = object()


def _literal(source: str) -> Any:
    """The value of a Python literal that a test can hold, else `_UNREADABLE`."""
    try:
        value = ast.literal_eval(source)
        encode_value(value)  # refuses `...`, which models like to write
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return _UNREADABLE
    return value


def _arguments(source: str) -> tuple[Any, ...] | None:
    """The values of an argument list; None where it cannot be read or is empty."""
    args = _literal(f"({source},)")
    return args if isinstance(args, tuple) and source.strip() else None


def make_test(problem: Problem, case: ParsedCase, expected: Any, origin: Origin) -> ProblemTest:
    """A test from a generated input and an output; the comparator is the one of the problem's given tests."""
    if problem.entry_point is None:
        given = next(t.case for t in problem.tests if isinstance(t.case, StdioCase))
        return ProblemTest(
            case=StdioCase(stdin=case.stdin, expected=str(expected), comparator=given.comparator), origin=origin
        )
    calls = [t.case for t in problem.tests if isinstance(t.case, CallCase)]
    assert case.args is not None
    if calls:
        comparator = calls[0].comparator
        if isinstance(comparator, ExactValue) and comparator.truth:
            comparator = comparator.model_copy(update={"truth": False})  # a known value says more than its truth
        test = CallCase(args=list(case.args), expected=expected, comparator=comparator)
    else:
        test = CallCase(args=list(case.args), expected=expected)
    return ProblemTest(case=test, origin=origin)


def case_of(test: ProblemTest) -> ParsedCase:
    """The input of a test as a case without an output; the test is a plain call or for a program that reads."""
    case = test.case
    if isinstance(case, StdioCase):
        return ParsedCase(None, case.stdin, None, output_ok=False)
    assert isinstance(case, CallCase)
    return ParsedCase(tuple(case.args), "", None, output_ok=False)


def accepts(test: ProblemTest, value: Any) -> bool:
    """Whether a test takes a value (for a program that prints: its output). Raises TypeError for one that is code."""
    case = test.case
    if isinstance(case, AssertCase):
        raise TypeError("test: a test that is code takes a program, not a value")
    # Where a checker program decides, several answers are right; references still have to agree on one.
    if isinstance(case, StdioCase):
        printed = TokenComparator() if isinstance(case.comparator, CheckerProgram) else case.comparator
        return isinstance(value, str) and printed.accepts(value.encode("utf-8", "surrogatepass"), case.expected)
    returned = ExactValue() if isinstance(case.comparator, CheckerProgram) else case.comparator
    return returned.accepts(value, case.expected)


def training_tests(problem: Problem, made: Sequence[ProblemTest]) -> list[ProblemTest]:
    """What a generator may learn from: given tests that are not held out, and tests that were made for it by running
    the references; none twice, none that the prompt shows, and only those that can be written down."""
    usable, holdout = split_given(problem)
    kept_apart = {input_key(test) for test in (*holdout, *_example(problem))}
    found = {input_key(test): test for test in [*made, *usable] if renderable(test)}
    return [test for key, test in found.items() if key not in kept_apart]


def sft_completions(tests: Sequence[ProblemTest], rng: random.Random, count: int) -> list[str]:
    """`count` completions, each of three distinct tests; none where there are fewer."""
    if len(tests) < CASES_PER_PROMPT:
        return []
    picks = [rng.sample(tests, CASES_PER_PROMPT) for _ in range(count)]
    return [render_cases([input_text(t) for t in p], [output_text(t) for t in p]) for p in picks]


def derange(outputs: Sequence[str], rng: random.Random) -> list[str]:
    """The outputs permuted or corrupted so that at least one differs from its own.

    A derangement where the outputs allow one; else the value of one output is changed.
    """
    if len(set(outputs)) > 1:
        # Equal outputs side by side, each place takes what stands one largest block further on: nothing keeps its own
        # unless one output fills more than half of the places.
        rank = {output: rng.random() for output in outputs}
        order = sorted(rng.sample(range(len(outputs)), len(outputs)), key=lambda place: rank[outputs[place]])
        shift = max(Counter(outputs).values())
        moved = list(outputs)
        for i, place in enumerate(order):
            moved[place] = outputs[order[(i + shift) % len(order)]]
        return moved
    changed = list(outputs)
    place = rng.randrange(len(changed))
    changed[place] = corrupt(changed[place], rng)
    return changed


def corrupt(output: str, rng: random.Random) -> str:
    """Another plausible output of the same kind: a number off by a little, a flipped truth value, a changed text."""
    swaps = {
        "True": "False",
        "False": "True",
        "YES": "NO",
        "NO": "YES",
        "Yes": "No",
        "No": "Yes",
        "None": "0",
        "[]": "[0]",
    }
    if output in swaps:
        return swaps[output]
    text = _literal(output)
    if isinstance(text, str):
        if text.isprintable() and any(c.isdigit() for c in text):
            return repr(corrupt(text, rng))
        return repr(text[::-1] if text != text[::-1] else text + "x")
    numbers = list(re.finditer(r"(?<![\w.])-?\d+", output))  # the whole part only, so that 3.0 stays a number
    if numbers:
        match = rng.choice(numbers)
        return output[: match.start()] + str(int(match[0]) + rng.choice([-2, -1, 1, 2])) + output[match.end() :]
    words = list(re.finditer(r"\b(?:True|False)\b", output))
    if words:
        match = rng.choice(words)
        return output[: match.start()] + swaps[match[0]] + output[match.end() :]
    return output + "1" if output[-1:].isalnum() else output + " 0"  # not 0: .50 is .5


def preference_pairs(
    problem: Problem,
    tests: Sequence[ProblemTest],
    prompt: str,
    rng: random.Random,
    count: int,
    wrong: Sequence[Mapping[str, str]] = (),
) -> list[TextPair]:
    """`count` DPO pairs: true tests against the same inputs with wrong outputs (paper section 3.1).

    `wrong`: of faulty programs, the outputs that are wrong, by the text of the input. Where there are any, half of the
    pairs take one of theirs, which is wrong as programs are; the others permute or corrupt the true outputs.
    """
    if len(tests) < CASES_PER_PROMPT:
        return []
    pairs = []
    for _ in range(count):
        faulty = rng.choice(wrong) if wrong and rng.random() < 0.5 else {}
        told = [test for test in tests if input_text(test) in faulty]
        picked = [rng.choice(told)] if told else []
        others = [test for test in tests if test not in picked]
        picked = rng.sample([*picked, *rng.sample(others, CASES_PER_PROMPT - len(picked))], CASES_PER_PROMPT)
        inputs, outputs = [input_text(t) for t in picked], [output_text(t) for t in picked]
        bad = [faulty.get(i, o) for i, o in zip(inputs, outputs, strict=True)] if told else derange(outputs, rng)
        pairs.append(
            TextPair(
                problem_id=problem.id,
                prompt=prompt,
                chosen=render_cases(inputs, outputs),
                rejected=render_cases(inputs, bad),
            )
        )
    return pairs


def corrected_pair(
    problem: Problem, cases: Sequence[ParsedCase], true: Mapping[str, ProblemTest], prompt: str = ""
) -> TextPair | None:
    """A DPO pair from one text of the generator itself: its cases with the true outputs against its own.

    `true`: tests by the references, by the key of their input; cases whose input makes no test, or whose output cannot
    be read, are left out of both. None where what is left is right, or cannot be written down.
    """
    told = _against_truth(problem, cases, true)
    if all(one.right for one in told):
        return None
    inputs = [one.given for one in told]
    return TextPair(
        problem_id=problem.id,
        prompt=prompt,
        chosen=render_cases(inputs, [one.true for one in told]),
        rejected=render_cases(inputs, [one.written for one in told]),
    )


def ranked_pairs(
    problem: Problem, texts: Sequence[Sequence[ParsedCase]], true: Mapping[str, ProblemTest], prompt: str = ""
) -> list[TextPair]:
    """DPO pairs from texts of the generator itself: that with the most right outputs against that with the fewest, the
    second best against the second worst, and so on while they differ; no text is in two. Outputs are those that the
    generator wrote: pairs teach to choose inputs whose outputs it knows.

    `true`: see `corrected_pair`; cases that are left out there stand in neither text, so that a text may be shorter
    than it was written. A text without any other case is in no pair.
    """
    told = [found for cases in texts if (found := _against_truth(problem, cases, true))]
    told.sort(key=lambda cases: -sum(one.right for one in cases))
    pairs = []
    for best, worst in itertools.islice(zip(told, reversed(told), strict=True), len(told) // 2):
        if sum(one.right for one in best) == sum(one.right for one in worst):
            break
        chosen, rejected = (render_cases([one.given for one in t], [one.written for one in t]) for t in (best, worst))
        pairs.append(TextPair(problem_id=problem.id, prompt=prompt, chosen=chosen, rejected=rejected))
    return pairs


@dataclass(frozen=True, slots=True)
class _Told:
    """One case as text: its input, the true output, and what the generator wrote (where it is right in other words, the
    same as the true one)."""

    given: str
    true: str
    written: str
    right: bool


def _against_truth(problem: Problem, cases: Sequence[ParsedCase], true: Mapping[str, ProblemTest]) -> list[_Told]:
    told = []
    for case in cases[:CASES_PER_PROMPT]:
        test = true.get(case.key)
        if test is None or not case.output_ok or not renderable(test):
            continue
        own = make_test(problem, case, case.output, Origin.GENERATED)
        if not renderable(own):
            continue
        right, output = accepts(test, case.output), output_text(test)
        told.append(_Told(input_text(test), output, output if right else output_text(own), right))
    return told
