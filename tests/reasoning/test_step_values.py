"""Values of steps for labels: what the policy's own continuations are worth, wherever the search went."""

import random
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


def drive(policy, seed, budget):
    """A tree over a made-up problem: second steps lead to a right program with probability 0.1 or 0.9, half each."""
    rng = random.Random(seed)
    config = SearchSettings(
        policy=policy, token_budget=budget, enough_passing=10**6, expansion_budget=10**6, max_depth=3
    )
    tree = SearchTree("t", "p", (1,), HEADERS, config, seed)
    while not tree.finished():
        expansion = tree.ask()
        actions = tree.begin(expansion.id, {2: 0.5, 3: 0.5} if expansion.depth == 1 else None)
        for slot, action in enumerate(actions):
            name = rng.randrange(10**9)
            ids = tuple([name % 97] * 10)
            if action is Action.CODE:
                step = tree.nodes[expansion.node].text
                good = 0.9 if "good" in step else 0.1 if "bad" in step else 0.5
                outcome = Outcome(
                    Sample(ids, (-1.0,) * 10, f"x = {name}\n```", "stop"), judgement=judged(rng.random() < good)
                )
            else:
                word = rng.choice(["good", "bad"]) if expansion.depth == 1 else "first"
                outcome = Outcome(Sample(ids, (-1.0,) * 10, f"{word} {name}\n{END}", "stop"))
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


@given(st.integers(0, 10**6), st.sampled_from(["puct", "gumbel", "beam"]))
@settings(max_examples=25, deadline=None)
def test_values_are_bounded_by_the_terminals_there_are(seed, policy):
    tree = drive(policy, seed, 400)
    for one, (passed, sampled) in zip(tree.nodes, step_values(tree.nodes), strict=True):
        assert 0 <= passed <= sampled <= one.sampled + 1e-6
        assert (sampled > 0) == (one.sampled > 0)
        assert (passed > 0) == (one.passed > 0)
