"""Suites from references, in the real sandbox: right by construction, sharper than the given tests, or refused."""

import asyncio

import pytest

from actors.executions import Executed
from actors.suite_builder import BuildSettings, SuiteBuilder
from reasoning.problems import bundled
from reasoning.records import Origin, Problem, ProblemTest
from reasoning.test_cases import ParsedCase
from sandbox import (
    CallCase,
    CheckerProgram,
    ExactValue,
    ExpressionCase,
    Limits,
    LocalPool,
    StdioCase,
    Submission,
    Verdict,
)

pytestmark = pytest.mark.slow  # starts processes all the time

LIMITS = Limits(cpu_s=1, memory_mb=256)


LOOP = asyncio.new_event_loop()


@pytest.fixture(scope="module", autouse=True)
def pool():
    """One pool for all tests of the file; they share its event loop."""
    made = LocalPool(2)
    LOOP.run_until_complete(made.__aenter__())
    do.pool = made
    yield
    LOOP.run_until_complete(made.__aexit__(None, None, None))


def do(work, settings=None):
    """The result of `work(builder)`."""
    return LOOP.run_until_complete(work(SuiteBuilder(do.pool, LIMITS, settings or BuildSettings())))


def call(*args, expected, shown=False):
    return ProblemTest(case=CallCase(args=list(args), expected=expected), shown=shown)


def problem(*references, tests, question="q", entry_point="f"):
    return Problem(id="p", question=question, entry_point=entry_point, references=references, tests=tests)


def case(*args, output=None):
    return ParsedCase(args, "", output, output_ok=output is not None)


CLAMP = """
def f(x, low, high):
    if x < low:
        return low
    if x > high:
        return high
    return x
"""
WEAK = (call(5, 0, 9, expected=5, shown=True), call(6, 0, 9, expected=6))


def test_a_weak_suite_becomes_sharp_and_every_output_is_the_references():
    suite = do(lambda builder: builder.build(problem(CLAMP, tests=WEAK)))
    quality = suite.quality
    assert suite.accepted and suite.kill_rate >= 0.9
    assert quality.killed > quality.killed_by_given
    assert quality.screened <= quality.mutants and 0 < quality.inputs_legal <= quality.inputs
    assert suite.tests[0] == WEAK[0] and len(suite.tests) <= 8
    space = {}
    exec(CLAMP, space)
    for test in suite.tests:
        assert space["f"](*test.case.args) == test.case.expected
        assert test.origin in (Origin.GIVEN, Origin.REFERENCE)


def test_the_smallest_suite_kills_as_much():
    full = do(lambda builder: builder.build(problem(CLAMP, tests=WEAK)))
    small = do(lambda builder: builder.build(problem(CLAMP, tests=WEAK)), BuildSettings(fill=False))
    assert small.quality.killed == full.quality.killed
    assert len(small.tests) < len(full.tests) == 8
    made = [t for t in small.tests if not t.shown]
    assert made and small.quality.redundancy <= (len(small.tests) - len(made)) / len(small.tests)


def test_a_suite_that_tells_too_little_apart_is_refused():
    faultless = problem("def f(x):\n    return x\n", tests=(call(1, expected=1),))
    suite = do(lambda builder: builder.build(faultless))
    assert (suite.kill_rate, suite.accepted) == (None, True)  # nothing to tell apart: nothing is known against it
    blunt = do(lambda builder: builder.build(problem(CLAMP, tests=WEAK)), BuildSettings(inputs=0, bar=0.9, size=1))
    assert not blunt.accepted and "below the bar of 0.90" in blunt.reason


REFERENCES = {
    "raises": (["def f(x):\n    return 10 // x\n"], [-1, 1, 2, 5]),
    "two disagree": (["def f(x):\n    return abs(x)\n", "def f(x):\n    return x\n"], [0, 1, 2, 5]),
    "never ends": (["def f(x):\n    while x < 0:\n        pass\n    return x\n"], [0, 1, 2, 5]),
    "prints much": (["def f(x):\n    return 'a' * (10_000 if x > 1 else 1)\n"], [-1, 0, 1]),
    "is slow": (["def f(x):\n    for _ in range(10**8 * (x > 1)):\n        pass\n    return x\n"], [-1, 0, 1]),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "is slow")) for name in REFERENCES]
)
def test_inputs_that_a_reference_cannot_answer_for_make_no_test(name):
    references, kept = REFERENCES[name]
    given = problem(*references, tests=(call(1, expected=1),))
    found = do(lambda builder: builder.executions.by_references(given, [case(n) for n in (-1, 0, 1, 2, 5)]))
    assert [t.case.args[0] for t in found.tests] == kept
    assert found.known == 5


def test_a_reference_that_says_something_else_each_time_gives_no_test():
    random = "import os\ndef f(x):\n    return int.from_bytes(os.urandom(8), 'big') if x else 0\n"
    found = do(
        lambda builder: builder.executions.by_references(
            problem(random, tests=(call(1, expected=1),)), [case(0), case(1), case(2)]
        )
    )
    assert [t.case.args[0] for t in found.tests] == [0]


def test_outputs_that_were_proposed_are_compared():
    halves = problem("def f(x):\n    return x / 2\n", tests=(call(2, expected=1.0),))
    found = do(
        lambda b: b.executions.by_references(
            halves, [case(2, output=1.0), case(3, output=1), case(5), case(1, output=0.5)]
        )
    )
    assert (len(found.tests), found.known, found.right) == (4, 4, 2)


def test_limits_of_the_question_keep_inputs_out_unless_the_given_tests_break_them():
    source = "def f(n):\n    return n * 2\n"
    stated = "Double n, 1 <= n <= 4."
    cases = [case(n) for n in (-3, 0, 1, 4, 5)]
    kept = do(
        lambda b: b.executions.by_references(problem(source, question=stated, tests=(call(1, expected=2),)), cases)
    )
    assert [t.case.args[0] for t in kept.tests] == [1, 4]
    misread = do(
        lambda b: b.executions.by_references(problem(source, question=stated, tests=(call(9, expected=18),)), cases)
    )
    assert len(misread.tests) == 5


def test_limits_of_the_question_hold_for_all_that_a_program_reads():
    source = "n = int(input())\nprint(sum(map(int, input().split())))\n"
    given = [ProblemTest(case=StdioCase(stdin=text, expected="9\n"), shown=True) for text in ("2\n4 5\n", "1\n9\n")]
    adds = problem(source, question="Add n numbers, 1 <= a_i <= 9.", tests=tuple(given), entry_point=None)
    suite = do(lambda builder: builder.build(adds))
    assert len(suite.tests) > 4
    for one in suite.tests:
        first, second = one.case.stdin.split("\n")[:2]
        numbers = [int(word) for word in second.split()]
        assert len(numbers) == int(first) and all(1 <= number <= 9 for number in numbers)


SORTED = "def f(nums):\n    return nums[-1] - nums[0]\n"
IN_ORDER = (call([1, 4], expected=3, shown=True), call([2, 3, 7], expected=5))


def in_order(test):
    return sorted(test.case.args[0]) == test.case.args[0]


def test_what_the_question_says_of_all_inputs_is_true_of_those_that_make_a_suite():
    spread = problem(SORTED, question="The spread of a sorted list.", tests=IN_ORDER)
    suite = do(lambda b: b.build(spread))
    assert len(suite.tests) > 3 and all(map(in_order, suite.tests))
    free = do(lambda b: b.build(spread.model_copy(update={"question": "Last less first of a list."})))
    assert not all(map(in_order, free.tests))


def test_a_case_of_the_generator_that_lacks_it_is_in_no_suite_but_counts_in_its_accuracy():
    spread = problem(SORTED, question="The spread of a sorted list.", tests=IN_ORDER)
    cases = [case([5, 2], output=-3), case([2, 8], output=6)]
    written = do(lambda b: b.executions.by_references(spread, cases))
    assert (written.known, written.right, len(written.tests)) == (2, 2, 2)
    suite = do(lambda b: b.build(spread, written), BuildSettings(inputs=0, size=16))
    assert [t.case.args for t in suite.tests if t.origin is Origin.REFERENCE] == [[[2, 8]]]
    assert suite.quality.cases_right == 2


def test_where_the_references_are_not_looked_at_only_shown_tests_say_how_inputs_are():
    hidden = [call([n, n + 2], expected=2) for n in range(4)]
    spread = problem(
        SORTED, question="The spread of a sorted list.", tests=(call([3], expected=0, shown=True), *hidden)
    )
    programs = [SORTED, "def f(nums):\n    return nums[len(nums) - 1] - nums[0]\n"]
    suite = do(lambda b: b.build_agreed(spread, [case([4, 6], output=2)], programs))
    assert not all(map(in_order, suite.tests))


def test_a_slow_given_test_does_not_make_its_mutants_look_killed():
    """On the given input the reference itself takes longer than on all that is made from it."""
    slow = "def f(n):\n    for _ in range(n):\n        pass\n    return n > 5\n"
    test = call(30_000_000, expected=True, shown=True)
    suite = do(lambda b: b.build(problem(slow, tests=(test,))), BuildSettings(inputs=0, screening=0, mutants=40))
    # Some change the comparison, and are told apart by it; moving the bound of the loop or of n changes nothing.
    assert suite.quality.screened < suite.quality.mutants


def test_programs_that_read_and_print():
    source = "n = int(input())\nprint(sum(map(int, input().split())) if n else 0)\n"
    test = ProblemTest(case=StdioCase(stdin="3\n1 2 3\n", expected="6\n"), shown=True)
    adds = problem(source, tests=(test,), entry_point=None)
    suite = do(lambda builder: builder.build(adds))
    assert len(suite.tests) > 3 and suite.quality.inputs_legal > 10
    for one in suite.tests:
        assert int(one.case.expected) == sum(map(int, one.case.stdin.split("\n")[1].split()))


def test_generated_tests_are_candidates_like_the_others():
    generated = [ProblemTest(case=CallCase(args=[-4, 0, 9], expected=0), origin=Origin.REFERENCE)]
    suite = do(lambda b: b.build(problem(CLAMP, tests=WEAK), Executed(generated)), BuildSettings(inputs=0))
    assert generated[0] in suite.tests
    assert suite.quality.killed > suite.quality.killed_by_given


def test_a_generator_learns_from_true_tests_and_the_errors_of_faulty_programs():
    given = problem(CLAMP, tests=(*WEAK, call(-1, 0, 9, expected=0), call(10, 0, 9, expected=9)))

    async def work(builder):
        return await builder.material(given), await builder.build(given)

    material, suite = do(work)
    space = {}
    exec(CLAMP, space)
    assert len(material.tests) > 10
    true = {", ".join(map(repr, t.case.args)): repr(t.case.expected) for t in material.tests}
    for test in material.tests:
        assert space["f"](*test.case.args) == test.case.expected
    assert len(material.wrong) > 3
    for program in material.wrong:
        assert all(true[given] != answer for given, answer in program.items())
    held = {tuple(t.case.args) for t in suite.holdout}
    assert held and not held & {tuple(t.case.args) for t in material.tests}


def test_without_references_programs_and_tests_confirm_each_other():
    double = problem("unused", tests=(call(0, expected=0),))
    programs = [f"def f(x):\n    return {body}\n" for body in ("x + x", "x * 2", "x ** 2", "1 // 0", "x")]
    cases = [case(n, output=out) for n, out in ((1, 2), (2, 4), (3, 9), (5, 10), (7, 0))] + [case(9)]

    found, agreeing = do(lambda builder: builder.agreed(double, cases, programs))
    assert agreeing == programs[:2]
    assert [(t.case.args[0], t.case.expected) for t in found] == [(1, 2), (2, 4), (5, 10)]
    assert {t.origin for t in found} == {Origin.CONSENSUS}
    # One program alone confirms nothing, however many tests it passes.
    assert do(lambda builder: builder.agreed(double, cases, programs[1:3])) == ([], [])
    assert do(lambda builder: builder.agreed(double, cases[-1:], programs)) == ([], [])


def test_a_problem_whose_tests_are_no_calls_keeps_its_given_ones():
    tests = tuple(ProblemTest(case=ExpressionCase(expression=f"f({n})", expected=n), shown=n == 0) for n in range(3))
    suite = do(lambda builder: builder.build(problem("def f(x):\n    return x\n", tests=tests)))
    assert suite.tests == tests[:2] and suite.holdout == tests[2:]
    assert suite.quality.inputs == 0


def test_programs_of_the_policy_are_told_right_from_wrong_and_count_apart():
    right = "def f(x, low, high):\n    return low if x < low else high if x > high else x\n"
    wrong = ["def f(x, low, high):\n    return max(x, low)\n", "def f(x, low, high):\n    return x\n", "def f(:\n"]
    suite = do(lambda b: b.build(problem(CLAMP, tests=WEAK), programs=[right, *wrong]))
    q = suite.quality
    assert (q.samples, q.samples_wrong, q.samples_killed) == (4, 3, 3)
    assert q.samples_killed_by_given < 3  # x itself passes the given tests
    assert q.false_accept == 1 - (q.killed + 3) / (q.screened + 3)
    assert q.false_reject == 0
    assert (q.branches, q.branches_covered) == (4, 4)
    alone = do(lambda b: b.build(problem(CLAMP, tests=WEAK), programs=wrong), BuildSettings(inputs=0, mutants=0))
    assert (alone.quality.screened, alone.kill_rate) == (0, None)
    assert (alone.quality.branches, alone.quality.branches_covered) == (4, 2)


POISON = CheckerProgram(source="def check(given, output, expected):\n    return True\n")


@pytest.mark.parametrize("comparator", [ExactValue(), POISON])
def test_a_suite_that_takes_anything_is_refused(comparator):
    """Be it that all answers are the same, or that whatever looks at them does not."""
    same = tuple(
        ProblemTest(case=CallCase(args=[n], expected=True, comparator=comparator), shown=n < 2) for n in (2, 3, 5)
    )
    prime = "def f(n):\n    return n > 1 and all(n % i for i in range(2, n))\n"
    suite = do(lambda b: b.build(problem(prime, tests=same)), BuildSettings(inputs=0, screening=0, mutants=0))
    assert not suite.accepted and suite.reason == "a program that always gives the same answer passes it"
    made = do(lambda b: b.build(problem(prime, tests=same)))
    assert made.accepted == (comparator is not POISON)


@pytest.mark.parametrize("seed", range(4, 8))
def test_no_accepted_suite_expects_the_same_of_all_inputs(seed):
    """Whichever answer it is: here the commoner one is not the one that a suite may end up with."""
    three = "def f(s):\n    return len(s) == 3\n"
    tests = (call("abc", expected=True, shown=True), call("xab", expected=True, shown=True), call("a", expected=False))
    suite = do(lambda b: b.build(problem(three, tests=tests)), BuildSettings(seed=seed))
    assert not suite.accepted or len({t.case.expected for t in suite.tests}) == 2


def test_a_suite_without_tests_is_refused():
    sorts = problem("def f(xs):\n    xs.sort()\n", tests=(call([2, 1], expected=None), call([1], expected=None)))
    suite = do(lambda b: b.build(sorts), BuildSettings(fill=False))
    assert (suite.accepted, suite.reason) == (False, "it has no test")


def test_sandbox_failures_are_not_taken_for_blindness():
    given = problem(CLAMP, tests=(*WEAK, call(-1, 0, 9, expected=0)))

    async def work(builder):
        judge = builder.executions.pool.judge

        class Failing:
            async def judge(self, submission):
                result = await judge(submission)
                if "*arguments" not in submission.source:
                    return result
                lost = [case.model_copy(update={"verdict": Verdict.SANDBOX_ERROR}) for case in result.cases]
                return result.model_copy(update={"cases": lost})

            run_calls = builder.executions.pool.run_calls

        return await SuiteBuilder(Failing(), LIMITS, BuildSettings()).build(given)

    assert do(work).accepted


def test_what_the_given_tests_kill_does_not_depend_on_what_was_made():
    """Neither where the generator repeats a given input, nor where a mutant runs out of time on a made one."""
    loops = "def f(n):\n    i = 0\n    while i < n:\n        i += 1\n    return i\n"
    given = problem(loops, tests=tuple(call(n, expected=n, shown=n < 2) for n in (0, 1, 2, 3, 4)))
    repeated = [ProblemTest(case=CallCase(args=[n], expected=n), origin=Origin.REFERENCE) for n in (2, 3, 4)]
    plain = do(lambda b: b.build(given), BuildSettings(inputs=0, screening=0)).quality
    made = do(lambda b: b.build(given, Executed(repeated)), BuildSettings(inputs=0, screening=0)).quality
    assert plain.killed_by_given == made.killed_by_given == plain.screened > 0


def test_a_program_that_has_nothing_to_look_at_may_always_answer_the_same():
    nothing = problem("def f():\n    return 7\n", tests=(call(expected=7),))
    assert do(lambda b: b.build(nothing)).accepted


def test_the_generator_is_counted_by_what_was_asked_of_it():
    async def work(builder):
        given = problem(CLAMP, tests=WEAK)
        cases = [case(1, 2, 3, output=2), case(9, 2, 3, output=9), case("a", 2, 3)]
        return await builder.build(given, await builder.executions.by_references(given, cases), asked=6)

    q = do(work).quality
    assert (q.asked, q.cases, q.cases_valid, q.cases_right) == (6, 3, 2, 1)


def test_suites_by_consensus_alone():
    """The references are only asked how it went."""
    agreeing = [CLAMP.replace("return x", "return x + 0"), "def f(x, low, high):\n    return max(low, min(x, high))\n"]
    programs = [*agreeing, "def f(x, low, high):\n    return x\n", "def f(x, low, high):\n    return 1 // 0\n"]
    cases = [case(1, 2, 3, output=2), case(9, 2, 3, output=3), case(2, 0, 5, output=2), case(4, 0, 9, output=5)]
    secret = problem(CLAMP, tests=WEAK)

    suite = do(lambda b: b.build_agreed(secret, cases, programs, asked=6))
    q = suite.quality
    assert suite.accepted and suite.kill_rate >= 0.5
    assert suite.tests[0] == WEAK[0] and {t.origin for t in suite.tests[1:]} == {Origin.CONSENSUS}
    assert (q.asked, q.cases, q.cases_valid, q.cases_right) == (6, 4, 4, 3)
    assert q.false_reject == 0 and q.false_accept <= 0.5  # inputs on which those that agree differ make no test
    blind = do(lambda b: b.build_agreed(secret.model_copy(update={"references": ()}), cases, programs))
    assert blind.tests == suite.tests and blind.quality.false_reject is None
    refused = do(lambda b: b.build_agreed(secret, cases, programs[1:2]))
    assert not refused.accepted and refused.reason == "no 2 of 1 programs agree on a test that was written"
    assert refused.tests == WEAK[:1]


def test_texts_are_rewarded_for_what_their_tests_tell_apart():
    given = problem(CLAMP, tests=WEAK)
    wrong = ["def f(x, low, high):\n    return x\n", "def f(x, low, high):\n    return max(x, low)\n"]
    sharp = [case(9, 0, 5, output=5)]  # both fail it
    half = [case(-9, 0, 5, output=0)]  # one does
    dull = [case(1, 0, 5, output=1)]
    false = [case(9, 0, 5, output=9)]  # as the first wrong program answers
    texts = [sharp * 1, half, dull, false, [], [case(1, 2, 3)]]
    found = do(lambda b: b.rewards(given, texts, wrong))
    # One test of three that were asked for; the others count -1 each.
    assert found == [pytest.approx((reward - 2) / 3) for reward in (1.0, 0.5, 0.0, -1.0)] + [-1.0, -1.0]


def test_rewards_do_not_depend_on_other_texts_nor_on_illegal_inputs():
    adds = problem(
        "def f(n):\n    t = 0\n    for i in range(n):\n        t += 1\n    return t\n",
        tests=(call(1, expected=1), call(3, expected=3)),
        question="Count, 0 <= n.",
    )
    wrong = ["def f(n):\n    while n != 3:\n        pass\n    return 3\n"]
    texts = [[case(1, output=1), case(2, output=2), case(5, output=5)], [case(3, output=3)] * 1, [case(4, output=9)]]
    alone = [do(lambda b, t=t: b.rewards(adds, [t], wrong))[0] for t in texts]
    huge = [case(10**10, output=10**10)]
    together = do(lambda b: b.rewards(adds, [huge, *texts], wrong))[1:]
    assert together == alone and alone[0] == 1.0
    assert do(lambda b: b.rewards(adds, [[case(-1, output=0), case(-2, output=0), case(-3, output=0)]], wrong)) == [
        -1.0
    ]


def test_one_input_that_takes_too_long_does_not_end_a_consensus():
    secret = problem("unused", tests=(call(0, expected=0),)).model_copy(update={"references": ()})
    programs = [
        "def f(n):\n    return sum(range(n + 1))\n",
        "def f(n):\n    t = 0\n    while n:\n        t += n\n        n -= 1\n    return t\n",
    ]
    cases = [case(10**10, output=1), case(5, output=15), case(6, output=21)]
    tests, agreeing = do(lambda b: b.agreed(secret, cases, programs))
    assert [t.case.args[0] for t in tests] == [5, 6] and agreeing == programs
    assert do(lambda b: b.build_agreed(secret, cases, programs)).accepted


def test_a_copy_under_other_names_confirms_nothing():
    twice = problem("def f(x):\n    return 2 * x\n", tests=(call(0, expected=0, shown=True),))
    copies = ["def f(x):\n    return x\n", "def f(n):\n    # the same\n    return n\n"]
    suite = do(lambda b: b.build_agreed(twice, [case(0, output=0), case(3, output=3)], copies, asked=3))
    assert not suite.accepted and "no 2 of 2 programs agree" in suite.reason
    # It counts all the same in what is said of the generator.
    assert (suite.quality.asked, suite.quality.cases, suite.quality.cases_right) == (3, 2, 1)
    other = [*copies, "def f(x):\n    return x + 0 * x\n"]
    fooled = do(lambda b: b.build_agreed(twice, [case(3, output=3)], other), BuildSettings(mutants=0))
    assert not fooled.accepted and "no fault" in fooled.reason


HOSTILE = {
    "a number of thousands of digits": ("def f(n):\n    return 10 ** (n * 1000)\n", [case(1), case(9)]),
    "a long text": ("def f(n):\n    return 'ab' * 200_000 * n\n", [case(0), case(1)]),
    "deep nesting": ("def f(n):\n    return n" + " + 0" * 900 + "\n", [case(0), case(1)]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_that_programs_answer_ends_the_building(name):
    source, cases = HOSTILE[name]
    given = problem(source, tests=(call(0, expected="" if "text" in name else int(name[0] == "a")),))

    async def work(builder):
        executed = await builder.executions.by_references(given, cases)
        too_long = "def f(n):\n    return 1\n" + "#" * 300_000
        programs = ["def f(n):\n    return 10 ** 9000\n", source.replace("return", "return 1 or"), too_long]
        return await builder.build(given, executed, programs), await builder.material(given, programs)

    suite, material = do(work)
    assert suite.quality.samples == 3 and len(material.programs) == len(material.wrong)


def test_nothing_is_learnt_from_what_is_held_out():
    doubles = problem("def f(n):\n    return 2 * n\n", tests=(call(1, expected=2), call(3, expected=6)))
    pairs = do(lambda b: b.own_pairs(doubles, [[case(3, output=5)], [case(4, output=5)]])).corrected
    assert [p.rejected for p in pairs] == ["Input:\n4\nOutput:\n5"]
    assert [p.chosen for p in pairs] == ["Input:\n4\nOutput:\n8"]


def test_the_better_of_two_texts_is_preferred_and_what_is_held_out_makes_neither_better():
    doubles = problem("def f(n):\n    return 2 * n\n", tests=(call(1, expected=2), call(3, expected=6)))
    good, bad, held = [case(5, output=10)], [case(4, output=5)], [case(3, output=6)]
    found = do(lambda b: b.own_pairs(doubles, [good, bad, held]))
    (put_right,), (ranked,) = found.corrected, found.ranked
    assert put_right.rejected == ranked.rejected == "Input:\n4\nOutput:\n5"
    assert ranked.chosen == "Input:\n5\nOutput:\n10"
    found = do(lambda b: b.own_pairs(doubles, [bad, held]))
    assert found.ranked == [] and len(found.corrected) == 1


def test_hard_negatives_are_answers_of_programs_of_the_policy_too():
    given = problem(CLAMP, tests=WEAK)
    lazy, right = "def f(x, low, high):\n    return x\n", CLAMP
    material = do(lambda b: b.material(given, [lazy, right, "def f(:"]), BuildSettings(mutants=0))
    assert material.programs == [lazy]
    true = {", ".join(map(repr, t.case.args)): t.case.expected for t in material.tests}
    assert material.wrong[0]
    for given_text, answer in material.wrong[0].items():
        x = given_text.split(", ")[0]
        assert answer == x != repr(true[given_text])


@pytest.mark.timeout(600)
def test_suites_of_the_bundled_problems_are_right_and_kill_nine_of_ten():
    problems = bundled()[:24]

    async def work(builder):
        suites = await asyncio.gather(*[builder.build(p) for p in problems])
        wrong = 0
        for p, suite in zip(problems, suites, strict=True):
            for reference in p.references:
                cases = [t.case for t in suite.tests]
                judged = await builder.executions.pool.judge(
                    Submission(source=reference, entry_point=p.entry_point, cases=cases)
                )
                wrong += judged.verdict is not Verdict.ACCEPTED
        return suites, wrong

    suites, wrong = do(work, BuildSettings(inputs=40, mutants=20))
    assert wrong == 0
    screened = sum(s.quality.screened for s in suites)
    assert sum(s.quality.killed for s in suites) >= 0.9 * screened
    assert sum(s.quality.killed for s in suites) > sum(s.quality.killed_by_given for s in suites)
