"""The search tree: budgets, exactly one end per sample, statistics against a slow count, replay."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasoning.labels import soft_label, solved_paths, step_labels
from reasoning.records import Action, Sample
from reasoning.search import SearchSettings, terminal_value
from reasoning.steps import END
from reasoning.tree import Judgement, Outcome, SearchTree, program_key
from sandbox import Verdict


def header_ids(number, action):
    return (900 + number, 950 + int(action))


def make(**overrides):
    config = SearchSettings(**{"token_budget": 3000, "expansion_budget": 40, "enough_passing": 99, **overrides})
    return SearchTree("t", "p", (1, 2, 3), header_ids, config)


def sample(action, rng, version=0):
    name = rng.randrange(6)
    text = f"x = {name}\n```" if action is Action.CODE else f"idea {name}\n{END}"
    ids = tuple(rng.randrange(100) for _ in range(rng.randrange(1, 20)))
    logprobs = tuple(-rng.random() for _ in ids)
    return Sample(ids, logprobs, text, "stop", ((version, 0, len(ids)),))


def judged(passed):
    verdict = Verdict.ACCEPTED if passed == 4 else Verdict.WRONG_ANSWER
    return Judgement(verdict, True, passed, 4)


def outcome(action, rng):
    if rng.random() < 0.1:
        return Outcome(infra_error="lost")
    if rng.random() < 0.1:
        return Outcome(sample=Sample((1,), (-0.1,), "cut", "length"))
    drawn = sample(action, rng)
    # Equal programs get equal judgements, as they do from a sandbox.
    passed = int(drawn.text[4]) % 5 if action is Action.CODE else 0
    return Outcome(sample=drawn, judgement=judged(passed) if action is Action.CODE else None)


def drive(tree, seed):
    """Ask and tell in a random order until the tree is finished and nothing is in flight; returns the slots told."""
    rng = random.Random(seed)
    waiting, told = [], []
    for _ in range(2000):
        if not tree.finished() and (expansion := tree.ask()) is not None:
            actions = tree.begin(expansion.id, expansion.count, {2: rng.random(), 3: rng.random()})
            waiting += [(expansion.id, slot, action) for slot, action in enumerate(actions)]
        if waiting and (rng.random() < 0.7 or tree.finished()):
            expansion_id, slot, action = waiting.pop(rng.randrange(len(waiting)))
            tree.tell(expansion_id, slot, outcome(action, rng))
            told.append((expansion_id, slot))
        if tree.finished() and not waiting:
            return told
    raise AssertionError("the tree never finished")


def check(tree):
    """Every statistic against a count over the nodes below."""
    below = {n.id: [] for n in tree.nodes}
    for node in tree.nodes:
        if node.terminal:
            at = node
            while at is not None:
                below[at.id].append(node)
                at = tree.nodes[at.parent] if at.parent is not None else None
    for node in tree.nodes:
        assert node.in_flight == 0
        assert node.pending == 0
        ends = below[node.id]
        assert node.sampled == node.visits == sum(e.multiplicity for e in ends)
        assert node.passed == sum(
            e.multiplicity for e in ends if e.judgement and e.judgement.verdict is Verdict.ACCEPTED
        )
        assert node.value_sum == pytest.approx(sum(e.multiplicity * e.value for e in ends))
        assert node.best == (max(e.value for e in ends) if ends else None)


@given(st.integers(0, 10_000), st.sampled_from(["puct", "uct"]))
@settings(max_examples=40, deadline=None)
def test_statistics_match_a_slow_count_whatever_the_order(seed, policy):
    tree = make(policy=policy, expansion_budget=20)
    told = drive(tree, seed)
    assert len(told) == len(set(told))
    assert tree.idle
    check(tree)


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_replay_of_the_event_log_gives_the_same_tree(seed):
    tree = make(expansion_budget=15)
    drive(tree, seed)
    events = json.loads(json.dumps(tree.events))
    again = SearchTree.replay("t", "p", tree.prompt_ids, header_ids, tree.settings, events)
    assert again.nodes == tree.nodes
    assert again.paths() == tree.paths()
    assert (again.tokens, again.infra_errors, again.duplicates) == (tree.tokens, tree.infra_errors, tree.duplicates)


def test_a_log_of_another_search_is_refused():
    tree = make()
    drive(tree, 1)
    events = [dict(e) for e in tree.events]
    next(e for e in events if e["event"] == "ask" and e["id"] == 3)["node"] = 10_000
    with pytest.raises(ValueError, match="does not follow"):
        SearchTree.replay("t", "p", tree.prompt_ids, header_ids, tree.settings, events)


def expand(tree, outcomes, priors=None):
    expansion = tree.ask()
    actions = tree.begin(expansion.id, len(outcomes), priors)
    nodes = [
        tree.tell(expansion.id, i, o(a) if callable(o) else o)
        for i, (a, o) in enumerate(zip(actions, outcomes, strict=True))
    ]
    return expansion, actions, nodes


def step(text):
    return Outcome(sample=Sample((7, 8), (-0.5, -0.5), f"{text}\n{END}", "stop"))


def program(text, passed):
    return Outcome(
        sample=Sample((9, *map(ord, text)), (-0.2,) * (1 + len(text)), f"{text}\n```", "stop"), judgement=judged(passed)
    )


def test_prompts_are_exactly_the_sampled_ids():
    tree = make()
    _, _, (node,) = expand(tree, [step("plan")])
    assert tree.prompt_for(node.id) == (1, 2, 3, 901, 951, 7, 8)


def test_telling_twice_changes_nothing():
    tree = make()
    expansion = tree.ask()
    tree.begin(expansion.id, 2)
    assert tree.tell(expansion.id, 0, step("a")) is not None
    assert tree.tell(expansion.id, 0, step("b")) is None
    assert len(tree.nodes) == 2
    tree.tell(expansion.id, 1, step("c"))
    assert tree.tell(expansion.id, 1, step("d")) is None
    assert tree.idle


def test_duplicates_merge_and_count_as_samples():
    tree = make()
    expand(tree, [step("a"), step("a")])
    assert tree.nodes[1].multiplicity == 2
    _, actions, _ = expand(tree, [program("x=1", 4), program("x = 1  # the same", 4)], {2: 0.0, 3: 1.0})
    assert actions == (Action.CODE, Action.CODE)
    leaf = tree.nodes[2]
    assert (leaf.multiplicity, leaf.visits, tree.root.sampled, tree.root.passed) == (2, 2, 2, 2)
    assert tree.duplicates == 2
    assert tree.known_judgement("x =   1") == judged(4)
    assert tree.known_judgement("x = 2") is None


def test_an_infrastructure_failure_is_no_value_and_the_node_is_tried_again():
    tree = make()
    expand(tree, [Outcome(infra_error="engine died")])
    assert tree.root.visits == 0
    assert tree.infra_errors == 1
    assert tree.ask().node == 0


def test_a_program_that_nobody_judged_is_not_a_zero():
    tree = make()
    expand(tree, [step("a")])
    expand(tree, [Outcome(sample=Sample((9,), (-0.1,), "x\n```", "stop"))], {2: 0.0, 3: 1.0})
    assert tree.root.visits == 0
    assert tree.infra_errors == 1


def test_a_malformed_step_is_the_policys_failure():
    tree = make()
    expand(tree, [Outcome(sample=Sample((1,), (-0.1,), "no end", "length")), step("fine")])
    assert tree.root.visits == 1
    assert tree.root.value_sum == 0.0
    failed = next(n for n in tree.nodes if n.failure)
    assert failed.closed
    assert tree.ask().node != failed.id


def test_abandoned_expansions_leave_nothing_in_flight():
    tree = make()
    first = tree.ask()
    tree.abandon(first.id, "cancelled before it began")
    second = tree.ask()
    tree.begin(second.id, 3)
    tree.tell(second.id, 1, step("kept"))
    tree.abandon(second.id, "cancelled")
    assert tree.idle
    check(tree)
    assert len(tree.nodes) == 2


def test_the_root_is_widened_when_everything_below_is_closed():
    tree = make(max_depth=2)
    expand(tree, [step("a")])
    expand(tree, [program("x=1", 0)])
    assert tree.root.closed
    assert tree.ask().node == 0


def test_search_turns_to_the_better_branch():
    tree = make(max_depth=3)
    expand(tree, [step("good"), step("bad")])
    good, bad = tree.nodes[1], tree.nodes[2]
    for _ in range(2):
        expansion = tree.ask()
        actions = tree.begin(expansion.id, 4, {2: 0.5, 3: 0.5})
        for slot, action in enumerate(actions):
            passed = 4 if expansion.node == good.id else 0
            result = program(f"x = {slot}", passed) if action is Action.CODE else step(f"refine {slot}")
            tree.tell(expansion.id, slot, result)
    nxt = tree.ask()
    assert tree.nodes[nxt.node].parent == good.id
    assert bad.visits > 0


def test_stop_rules():
    tree = make(enough_passing=1, enough_failing=1)
    expand(tree, [step("a")])
    expand(tree, [program("x=1", 4), program("x=2", 0)], {2: 0.0, 3: 1.0})
    assert "enough" in tree.finished()
    assert make().finished(elapsed_s=10_000) == "time budget"


def test_paths_labels_and_d_plus():
    tree = make(max_depth=3)
    expand(tree, [step("a")])
    expand(tree, [program("x=1", 4), program("x=2", 2)], {2: 0.0, 3: 1.0})
    paths = tree.paths()
    assert [p.value for p in paths] == [terminal_value(True, 4, 4, 0.1), terminal_value(True, 2, 4, 0.1)]
    assert [p.program for p in solved_paths(paths, 4)] == ["x=1\n"]
    labels = step_labels(paths)
    assert [len(x.ends) for x in labels] == [2, 2]
    # The shared first step carries its weight once: two terminals below it, one passing.
    assert labels[0].targets[0] == soft_label(1, 2)[0]
    assert sorted(x.weights[0] for x in labels) == [0.0, 2 / 8]
    for label, path in zip(labels, paths, strict=True):
        assert label.token_ids[label.ends[-1]] == path.steps[-1].token_ids[-1]
        assert len(label.token_ids) == label.ends[-1] + 1


def test_programs_are_compared_by_syntax():
    assert program_key("a=1\n") == program_key("a = 1  # note\n")
    assert program_key("a = 1") != program_key("a = 2")
    assert program_key("def broken(") == program_key("def broken( ")
