"""The search tree: budgets, exactly one end per sample, statistics against a slow count, replay."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasoning.event_log import Asked, EventLogError, Told, decode, encode
from reasoning.labels import soft_label, solved_paths, step_labels
from reasoning.nodes import Judgement, Outcome
from reasoning.policies import POLICIES
from reasoning.records import Action, Sample
from reasoning.search import SearchSettings, terminal_value
from reasoning.steps import END
from reasoning.tree import SearchTree
from sandbox import Verdict
from sandbox.cache import program_key

HEADERS = {(number, action): (900 + number, 950 + int(action)) for number in range(1, 17) for action in Action}


def make(log=None, seed=0, **overrides):
    config = SearchSettings(**{"token_budget": 3000, "expansion_budget": 40, "enough_passing": 99, **overrides})
    return SearchTree("t", "p", (1, 2, 3), HEADERS, config, seed, log)


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
            actions = tree.begin(expansion.id, {2: rng.random(), 3: rng.random()})
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


@given(st.integers(0, 10_000), st.sampled_from(["puct", "uct", "gumbel", "faithful", "best-of-n", "beam"]))
@settings(max_examples=80, deadline=None)
def test_statistics_match_a_slow_count_whatever_the_order(seed, policy):
    tree = make(policy=policy, expansion_budget=20)
    told = drive(tree, seed)
    assert len(told) == len(set(told))
    assert tree.idle
    check(tree)


POLICY_NAMES = ["puct", "uct", "gumbel", "faithful", "best-of-n", "beam"]


@given(st.integers(0, 10_000), st.sampled_from(POLICY_NAMES), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_replay_of_any_part_of_the_event_log_gives_the_same_tree(seed, policy, part):
    """The log goes through its text form; cut anywhere, it gives the tree as it was, from which the search goes on."""
    events = []
    tree = make(events.append, seed, policy=policy, expansion_budget=15)
    drive(tree, seed)
    again = SearchTree.replay(decode(b"".join(map(encode, events))))
    assert same(again, tree)
    assert again.paths() == tree.paths()
    kept = events[: 1 + int(part * (len(events) - 1))]
    more = []
    resumed = SearchTree.replay(kept, more.append)
    for expansion_id in resumed.in_flight:
        resumed.abandon(expansion_id, "the process is gone", pruned=True)
    assert resumed.idle
    drive(resumed, seed)
    check(resumed)
    assert same(SearchTree.replay([*kept, *more]), resumed)


def same(one, other):
    """Whether two trees hold the same nodes with the same statistics."""
    counts = [(t.tokens, t.samples, t.infra_errors, t.pruned, t.duplicates, t.expansions) for t in (one, other)]
    nodes = [
        [(n.parent, n.action, list(n.token_ids), list(n.logprobs), n.text, *n.statistics()) for n in t.nodes]
        for t in (one, other)
    ]
    return counts[0] == counts[1] and nodes[0] == nodes[1]


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_the_order_of_tell_does_not_matter(seed):
    """The same expansions with the same outcomes, told in two orders, give the same statistics of every state."""
    rng = random.Random(seed)
    plan = [[outcome(Action.DEFINE, rng) for _ in range(4)], [outcome(Action.CODE, rng) for _ in range(4)]]
    found = []
    for shuffled in (False, True):
        tree = make(enough_passing=99)
        expand(tree, [step("a")])
        running = [tree.ask(4)]
        actions = tree.begin(running[0].id, {2: 0.5, 3: 0.5})
        slots = list(range(4))
        if shuffled:
            rng.shuffle(slots)
        for slot in slots:
            tree.tell(running[0].id, slot, plan[actions[slot] is Action.CODE][slot])
        found.append(sorted((n.action or 0, n.text, n.depth, *map(str, n.statistics())) for n in tree.nodes))
        assert tree.idle
    assert found[0] == found[1]


def test_a_log_of_another_search_is_refused():
    events = []
    tree = make(events.append)
    drive(tree, 1)
    at = next(i for i, e in enumerate(events) if isinstance(e, Asked) and e.id == 3)
    with pytest.raises(EventLogError, match=f"line {at + 1}: expansion 3 of node 10000 does not follow"):
        SearchTree.replay([*events[:at], Asked(3, 10_000, 4), *events[at + 1 :]])
    with pytest.raises(EventLogError, match="opening"):
        SearchTree.replay(events[1:])
    with pytest.raises(EventLogError, match="line 2"):
        decode(encode(events[0]) + b"no json\n")
    with pytest.raises(EventLogError, match=r"line \d+: Told does not follow"):
        SearchTree.replay([events[0], *(e for e in events if isinstance(e, Told))])


def expand(tree, outcomes, priors=None):
    expansion = tree.ask(len(outcomes))
    actions = tree.begin(expansion.id, priors)
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
    expansion = tree.ask(2)
    tree.begin(expansion.id)
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
    second = tree.ask(3)
    tree.begin(second.id)
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
        actions = tree.begin(expansion.id, {2: 0.5, 3: 0.5})
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


@pytest.mark.parametrize("order", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_a_step_without_its_end_is_not_the_step_that_has_it(order):
    """The same words, cut off: one is a failure, the others can be gone on with, whichever comes first."""
    texts = ["Loop over the items.", f"Loop over the items.\n{END}"]
    tree = make(root_samples=3)
    expansion = tree.ask()
    tree.begin(expansion.id)
    for slot, whole in enumerate(order):
        drawn = Sample((1, 2), (-1.0, -1.0), texts[whole], "stop" if whole else "length", ((0, 0, 2),))
        tree.tell(expansion.id, slot, Outcome(drawn))
    cut, fine = sorted(tree.nodes[1:], key=lambda n: n.multiplicity)
    assert (cut.value, cut.multiplicity, bool(cut.failure)) == (0.0, 1, True)
    assert (fine.value, fine.multiplicity, fine.failure) == (None, 2, "")
    assert tree.ask().node == fine.id


@given(st.integers(0, 2**20), st.integers(0, 60), st.sampled_from(sorted(POLICIES)))
@settings(max_examples=60, deadline=None)
def test_no_path_outgrows_the_context(seed, more, policy):
    """A path that has no room for another step and a program turns to code; replay agrees."""
    limits = {"step_tokens": 20, "code_tokens": 20, "max_depth": 8, "policy": policy}
    path_tokens = 64 + more
    events = []
    tree = make(events.append, seed, path_tokens=path_tokens, **limits)
    drive(tree, seed)
    for node in tree.nodes[1:]:
        length = len(tree.prompt_for(node.id))
        assert length - len(node.token_ids) + 20 <= path_tokens
        if node.action is Action.REFINE:
            assert tree.settings.has_room(len(tree.prompt_for(node.parent)), 2)
    assert len(SearchTree.replay(events).nodes) == len(tree.nodes)


def test_programs_are_compared_by_syntax():
    assert program_key("a=1\n") == program_key("a = 1  # note\n")
    assert program_key("a = 1") != program_key("a = 2")


MALFORMED = {
    "no end marker": (Action.DEFINE, "only words", "stop", "no end marker"),
    "empty": (Action.DEFINE, END, "stop", "empty step"),
    "nothing at all": (Action.CODE, "", "stop", "no program"),
    "blank program": (Action.CODE, "\n \n```", "stop", "no program"),
    "a header inside": (Action.DEFINE, f"idea\n### Step 2: <Action 3> Write\n{END}", "stop", "a step inside a step"),
    "another step inside": (Action.DEFINE, f"idea\n<Step_Begin>\nmore\n{END}", "stop", "a step inside a step"),
    "two code blocks": (Action.CODE, "x = 1\n```\n```python\ny = 2\n```", "stop", "more than one code block"),
    "100 kB": (Action.DEFINE, "go on\n" * 17_000 + END, "stop", "longer than"),
    "a program of 100 kB": (Action.CODE, "x = 1\n" * 17_000 + "```", "stop", "longer than"),
    "cut off": (Action.CODE, "x = 1", "length", "cut off"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_steps_are_recorded_failures(name):
    action, text, finish, why = MALFORMED[name]
    events = []
    tree = make(events.append)
    if action is Action.CODE:
        expand(tree, [step("plan")])
    bad = Outcome(sample=Sample((1, 2), (-0.5, -0.5), text, finish))
    _, actions, (node,) = expand(tree, [bad], {2: 0.0, 3: 1.0} if action is Action.CODE else None)
    assert actions == (action,)
    assert why in node.failure and node.value == 0.0 and node.closed
    assert (tree.infra_errors, tree.root.visits, tree.root.passed) == (0, 1, 0)
    assert same(SearchTree.replay(events), tree)
