"""Sibling pairs for the pair-wise PRM."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_paths import path, step

from reasoning.nodes import Judgement, Outcome
from reasoning.pairs import MIN_MARGIN, path_pairs, required_margin, standard_error, step_pairs
from reasoning.records import Action, Sample
from reasoning.search import SearchSettings
from reasoning.tree import SearchTree
from sandbox import Verdict

DEFINE, REFINE, CODE = Action.DEFINE, Action.REFINE, Action.CODE


def siblings(*counts, tree="t", problem="p"):
    """One path per (passed, sampled), each of one step; the token id is its index."""
    return [
        path(problem=problem, tree=tree, steps=(step(DEFINE, [i], passed=passed, sampled=sampled),))
        for i, (passed, sampled) in enumerate(counts)
    ]


def ends(pairs):
    return [(pair.chosen_ids[-1], pair.rejected_ids[-1]) for pair in pairs]


def test_standard_error_golden():
    # p = 1.5 / 3 and q = 0.5 / 5.
    assert standard_error(1, 2, 0, 4) == pytest.approx(math.sqrt(0.25 / 2 + 0.09 / 4))
    assert standard_error(1, 1, 0, 1) == pytest.approx(math.sqrt(2 * 0.75 * 0.25))


def test_required_margin_is_at_least_a_quarter():
    assert required_margin(500, 1000, 0, 1000) == MIN_MARGIN == 0.25
    assert required_margin(1, 1, 0, 1) == pytest.approx(2 * math.sqrt(0.375))


@pytest.mark.parametrize("counts", [(-1, 2, 0, 1), (3, 2, 0, 1), (0, 1, 0, 0)])
def test_counts_that_cannot_be_are_refused(counts):
    with pytest.raises(ValueError, match="passed, sampled"):
        standard_error(*counts)
    with pytest.raises(ValueError, match="passed, sampled"):
        step_pairs(siblings((3, 2)), 1)


def test_a_pair_holds_what_the_learner_needs():
    first = step(DEFINE, [3, 4], (8,), 4, 8)
    win, lose = step(REFINE, [5], (7, 7), 4, 4), step(CODE, [6], (6,), 0, 4)
    paths = [path(steps=(first, win), prompt=(1, 2)), path(steps=(first, lose), prompt=(1, 2), value=0.0)]
    (pair,) = step_pairs(paths, 9)
    assert (pair.problem_id, pair.tree_id) == ("p", "t")
    assert pair.prefix_ids == (1, 2, 8, 3, 4)
    assert (pair.chosen_ids, pair.rejected_ids) == ((7, 7, 5), (6, 6))
    assert (pair.chosen_header, pair.rejected_header) == (2, 1)
    assert (pair.chosen_value, pair.rejected_value, pair.margin, pair.weight) == (1.0, 0.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([(1, 1), (0, 1)], []),  # one sample each says too little
        ([(2, 2), (0, 2)], [(0, 1)]),
        ([(4, 8), (2, 8)], []),  # a quarter apart, within 2 standard errors
        ([(500, 1000), (250, 1000)], [(0, 1)]),
        ([(282, 1000), (32, 1000)], [(0, 1)]),  # 0.282 - 0.032 < 0.25 in floating point
        ([(500, 1000), (251, 1000)], []),  # many standard errors, less than a quarter
        ([(9, 9), (0, 0)], []),  # nothing is known of the second
    ],
)
def test_only_clear_differences_make_pairs(counts, expected):
    assert ends(step_pairs(siblings(*counts), 9)) == expected


def test_programs_were_judged_and_not_estimated():
    paths = [path(steps=(step(DEFINE, [0]), step(CODE, [i], passed=p, sampled=1))) for i, p in enumerate((1, 0))]
    assert ends(step_pairs(paths, 9)) == [(0, 1)]


def test_the_search_value_does_not_count():
    paths = siblings((9, 9), (0, 9))
    misled = [
        p.model_copy(update={"steps": tuple(s.model_copy(update={"value": float(i)}) for s in p.steps)})
        for i, p in enumerate(paths)
    ]
    assert ends(step_pairs(misled, 9)) == [(0, 1)]


def test_a_group_weighs_by_its_winners_and_losers():
    pairs = step_pairs(siblings((9, 9), (9, 9), (0, 9), (0, 9), (0, 9)), 99)
    assert len(pairs) == 6
    assert {pair.weight for pair in pairs} == {1 / 6}
    # The middle one wins against the last and loses to the first: two winners, two losers, three pairs.
    chain = step_pairs(siblings((100, 100), (50, 100), (0, 100)), 99)
    assert ends(chain) == [(0, 2), (0, 1), (1, 2)]
    assert {pair.weight for pair in chain} == {1 / 4}


def test_siblings_share_tree_and_prefix():
    assert step_pairs(siblings((9, 9), tree="t") + siblings((0, 9), tree="u"), 9) == []
    other_prefix = [
        path(steps=(step(DEFINE, [n]), step(CODE, [5 + n], passed=9 * n, sampled=9)), value=float(n)) for n in (0, 1)
    ]
    assert step_pairs(other_prefix, 9) == []


def test_the_cap_is_per_problem_and_keeps_the_widest():
    paths = siblings((90, 100), (50, 100), (0, 100)) + siblings((9, 9), (0, 9), problem="q", tree="u")
    capped = step_pairs(paths, 1)
    assert [(pair.problem_id, pair.margin, pair.weight) for pair in capped] == [("p", 0.9, 1.0), ("q", 1.0, 1.0)]
    with pytest.raises(ValueError, match="per_problem"):
        step_pairs(paths, 0)


def test_later_counts_of_a_step_replace_earlier_ones():
    early, late = siblings((0, 1), (0, 9)), siblings((9, 9), (0, 9))
    assert ends(step_pairs(early + late, 9)) == ends(step_pairs(late + early, 9)) == [(0, 1)]


def test_malformed_steps_lose():
    headers = {(number, action): (90 + number,) for number in range(1, 5) for action in Action}
    tree = SearchTree("t", "p", (1, 2), headers, SearchSettings(root_samples=4, samples=6))
    expansion = tree.ask()
    tree.begin(expansion.id)
    for slot in range(4):  # the first is well formed, the others repeat a text that was cut off
        text, finish = ("plan\n<Step_End>", "stop") if slot == 0 else ("cut", "length")
        tree.tell(expansion.id, slot, Outcome(Sample((int(slot == 0),), (-0.5,), text, finish)))
    expansion = tree.ask()
    for slot, action in enumerate(tree.begin(expansion.id, {2: 0.0, 3: 1.0})):
        assert action is CODE
        judged = Judgement(Verdict.ACCEPTED, True, 4, 4)
        tree.tell(expansion.id, slot, Outcome(Sample((slot,), (-0.5,), f"x = {slot}\n```", "stop"), judged))
    (pair,) = step_pairs(tree.paths(), 9)
    assert (pair.prefix_ids, pair.chosen_ids, pair.rejected_ids) == ((1, 2), (91, 1), (91, 0))
    assert (pair.chosen_value, pair.rejected_value) == (1.0, 0.0)


counts = st.integers(0, 12).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@st.composite
def path_lists(draw):
    """Paths of up to two steps of two trees for each of two problems, with the same counts wherever a step recurs."""
    known = {}
    paths = []
    for _ in range(draw(st.integers(0, 14))):
        problem, tree = draw(st.sampled_from("pq")), draw(st.sampled_from("tu"))
        tokens = draw(st.lists(st.integers(0, 3), min_size=1, max_size=2))
        steps = []
        for depth, token in enumerate(tokens, start=1):
            key = (problem, tree, *tokens[:depth])
            if key not in known:
                known[key] = draw(counts)
            passed, sampled = known[key]
            steps.append(step(DEFINE if depth == 1 else CODE, [token], passed=passed, sampled=sampled))
        paths.append(path(problem=problem, tree=f"{problem}/{tree}", steps=steps))
    return paths


def group(pair):
    return pair.problem_id, pair.tree_id, pair.prefix_ids


@given(path_lists(), st.integers(1, 6))
def test_pairs_are_siblings_far_apart_capped_and_weighted(paths, cap):
    pairs = step_pairs(paths, cap)
    states = {}
    for p in paths:
        ids = p.prompt_ids
        for s in p.steps:
            states[p.tree_id, ids, s.header_ids + s.token_ids] = (s.passed, s.sampled, s.action)
            ids += s.header_ids + s.token_ids
    for pair in pairs:
        assert pair.chosen_ids != pair.rejected_ids
        won = states[pair.tree_id, pair.prefix_ids, pair.chosen_ids]
        lost = states[pair.tree_id, pair.prefix_ids, pair.rejected_ids]
        assert pair.chosen_value == won[0] / won[1]
        assert pair.rejected_value == lost[0] / lost[1]
        judged = won[2] is CODE  # and so is its sibling: actions follow the depth here
        assert pair.margin >= (MIN_MARGIN if judged else required_margin(*won[:2], *lost[:2])) - 1e-9
        alike = [other for other in pairs if group(other) == group(pair)]
        winners, losers = {x.chosen_ids for x in alike}, {x.rejected_ids for x in alike}
        assert pair.weight == 1 / (len(winners) * len(losers))
        assert sum(other.weight for other in alike) <= 1 + 1e-9
    for problem in "pq":
        margins = [pair.margin for pair in pairs if pair.problem_id == problem]
        assert len(margins) <= cap
        assert margins == sorted(margins, reverse=True)
        everything = [pair.margin for pair in step_pairs(paths, 10_000) if pair.problem_id == problem]
        assert margins == everything[:cap]


@given(path_lists(), st.integers(1, 6), st.randoms())
def test_pairs_do_not_depend_on_the_order_of_paths(paths, cap, random):
    shuffled = random.sample(paths, len(paths))
    assert sorted(map(repr, step_pairs(shuffled, cap))) == sorted(map(repr, step_pairs(paths, cap)))


def test_paths_that_pass_are_paired_with_the_worst_that_fail():
    def made(value, tokens, problem="p"):
        return path(problem, value, (step(Action.CODE, range(tokens)),))

    right = [made(1.0, 9), made(1.0, 4)]
    wrong = [made(0.6, 3), made(0.1, 3), made(0.1, 7)]
    lost, alone = path(value=None), made(1.0, 3, "q")
    found = path_pairs([*right, *wrong, lost, alone], 9)
    assert found == [(right[1], wrong[2]), (right[0], wrong[1])]
    assert path_pairs([*right, *wrong], 1) == found[:1]
    assert path_pairs([lost, alone], 3) == []
