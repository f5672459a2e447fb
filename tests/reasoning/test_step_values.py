"""Values of steps for labels: what the policy's own continuations are worth, wherever the search went."""

import random
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasoning.labels import soft_label
from reasoning.nodes import Judgement, Node, Outcome
from reasoning.records import Action, Sample
from reasoning.search import SearchSettings
from reasoning.step_values import step_values
from reasoning.steps import END
from reasoning.tree import SearchTree
from sandbox import Verdict

HEADERS = {(number, action): (900,) for number in range(1, 17) for action in Action}


def judged(right):
    return Judgement(Verdict.ACCEPTED if right else Verdict.WRONG_ANSWER, True, int(right), 1)


def node(number, parent, action, right=None, multiplicity=1, value=None, priors=None):
    judgement = judged(right) if right is not None else None
    made = Node(number, parent, 0, action, judgement=judgement, multiplicity=multiplicity, action_prior=priors)
    made.value = float(right) if right is not None else value
    return made


def tree_of(*nodes):
    for one in nodes:
        if one.parent is not None:
            nodes[one.parent].children.append(one.id)
    return list(nodes)


def test_independent_paths_count_one_each():
    paths = [(1, True), (2, False), (3, True)]
    steps = [node(n, 0, Action.DEFINE) for n, _ in paths]
    codes = [node(n + 3, n, Action.CODE, right) for n, right in paths]
    assert step_values(tree_of(node(0, None, None), *steps, *codes))[0] == (2, 3)


def test_what_the_search_looked_at_more_does_not_weigh_more():
    """Two steps, each drawn once: one with 6 right programs below it, one with a single wrong one."""
    steps = [node(1, 0, Action.DEFINE), node(2, 0, Action.DEFINE)]
    codes = [node(3 + n, 1, Action.CODE, True) for n in range(6)] + [node(9, 2, Action.CODE, False)]
    passed, sampled = step_values(tree_of(node(0, None, None), *steps, *codes))[0]
    assert passed / sampled == pytest.approx(0.5, abs=1e-5)
    assert sampled == pytest.approx(1 / (0.25 / 6 + 0.25))


def test_the_policys_probability_of_an_action_weighs_not_how_often_it_was_forced():
    priors = {int(Action.REFINE): 0.9, int(Action.CODE): 0.1}
    nodes = tree_of(
        node(0, None, None),
        node(1, 0, Action.DEFINE, priors=priors),
        node(2, 1, Action.REFINE, multiplicity=1),
        node(3, 1, Action.CODE, False, multiplicity=3),
        node(4, 2, Action.CODE, True),
    )
    passed, sampled = step_values(nodes)[1]
    assert passed / sampled == pytest.approx(0.9)
    assert step_values(nodes)[3] == (0, 3)


def test_what_was_never_gone_on_with_says_nothing_and_a_failure_says_no():
    nodes = tree_of(
        node(0, None, None),
        node(1, 0, Action.DEFINE),
        node(2, 0, Action.DEFINE, value=0.0, multiplicity=2),
        node(3, 0, Action.DEFINE),
        node(4, 3, Action.CODE, True),
    )
    values = step_values(nodes)
    assert values[1] == (0, 0)
    assert values[2] == (0, 2)
    assert values[0] == (1, 3)


def drive(policy, seed, budget, code=0.5, at_once=0.5, scored=False):
    """A tree over a made-up problem: second steps lead to a right program with probability 0.1 or 0.9, half each; a
    program in their place, which the policy writes with probability `code`, is right with probability `at_once`.
    `scored`: a PRM tells the two kinds of second steps apart, and leads the search."""
    rng = random.Random(seed)
    config = SearchSettings(
        policy=policy, token_budget=budget, enough_passing=10**6, expansion_budget=10**6, max_depth=3,
        rollout_weight=0.5 if scored else 1.0,
    )  # fmt: skip
    tree = SearchTree("t", "p", (1,), HEADERS, config, seed)
    while not tree.finished():
        expansion = tree.ask()
        actions = tree.begin(expansion.id, {2: 1 - code, 3: code} if expansion.depth == 1 else None)
        for slot, action in enumerate(actions):
            name = rng.randrange(10**9)
            ids = tuple([name % 97] * 10)
            if action is Action.CODE:
                step = tree.nodes[expansion.node].text
                good = 0.9 if "good" in step else 0.1 if "bad" in step else at_once
                outcome = Outcome(
                    Sample(ids, (-1.0,) * 10, f"x = {name}\n```", "stop"), judgement=judged(rng.random() < good)
                )
            else:
                word = rng.choice(["good", "bad"]) if expansion.depth == 1 else "first"
                score = {"good": 0.9, "bad": 0.1, "first": 0.5}[word] if scored else None
                outcome = Outcome(Sample(ids, (-1.0,) * 10, f"{word} {name}\n{END}", "stop"), score=score)
            tree.tell(expansion.id, slot, outcome)
    return tree


@pytest.mark.parametrize("policy", ["puct", "uct", "faithful", "best-of-n"])
def test_labels_of_searched_trees_are_not_biased(policy):
    """Every first step is worth 0.5 to the policy; a search that finds the good half must not say more."""
    labels = []
    for seed in range(40):
        tree = drive(policy, seed, 1500)
        values = step_values(tree.nodes)
        labels += [values[i][0] / values[i][1] for i in tree.root.children if values[i][1] > 0]
    assert len(labels) > 40
    assert mean(labels) == pytest.approx(0.5, abs=0.06)


def weighted(policy, budget, **world):
    """Mean label of first steps over many trees, by their weight."""
    labels = [
        soft_label(*values[i])
        for seed in range(120)
        for tree in [drive(policy, seed, budget, **world)]
        for values in [step_values(tree.nodes)]
        for i in tree.root.children
    ]
    return sum(target * weight for target, weight in labels) / sum(weight for _, weight in labels)


@pytest.mark.parametrize("policy", ["puct", "gumbel", "beam"])
@pytest.mark.parametrize("budget", [180, 300])
def test_programs_that_the_search_forced_do_not_speak_for_the_policy(policy, budget):
    """The policy writes a program at once in one of 20 cases, always a wrong one; the step is worth 0.475 to it."""
    assert weighted(policy, budget, code=0.05, at_once=0.0) == pytest.approx(0.475, abs=0.1)


@pytest.mark.parametrize("policy", ["puct", "gumbel", "beam"])
def test_steps_that_a_reward_model_picked_do_not_speak_for_the_policy(policy):
    """The best of k is worth 0.9, the policy's own choice 0.5."""
    assert weighted(policy, 300, code=0.2, scored=True) == pytest.approx(0.5, abs=0.12)


def test_scored_steps_speak_for_themselves_and_the_programs_beside_them_for_their_share():
    priors = {int(Action.REFINE): 0.75, int(Action.CODE): 0.25}
    nodes = tree_of(
        node(0, None, None),
        node(1, 0, Action.DEFINE, priors=priors),
        node(2, 1, Action.REFINE),
        node(3, 1, Action.CODE, False, multiplicity=4),
        node(4, 1, Action.REFINE, value=0.0),
        node(5, 2, Action.CODE, True, multiplicity=2),
    )
    nodes[2].score = 0.9
    values = step_values(nodes)
    assert values[2] == (2, 2)
    assert values[1] == (0, pytest.approx(4 * 0.25**2))


@given(st.integers(0, 10**6), st.sampled_from(["puct", "gumbel", "beam"]))
@settings(max_examples=25, deadline=None)
def test_values_are_bounded_by_the_terminals_there_are(seed, policy):
    tree = drive(policy, seed, 400)
    for one, (passed, sampled) in zip(tree.nodes, step_values(tree.nodes), strict=True):
        assert 0 <= passed <= sampled <= one.sampled + 1e-6
        assert (sampled > 0) == (one.sampled > 0)
        assert (passed > 0) == (one.passed > 0)
