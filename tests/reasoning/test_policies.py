"""What each policy does that the others do not."""

import math
import random
from collections import Counter

import pytest

from reasoning.nodes import Judgement, Outcome
from reasoning.records import Action, Sample
from reasoning.search import SearchSettings, considered_visits
from reasoning.steps import END
from reasoning.tree import SearchTree
from sandbox import Verdict

HEADERS = {(number, action): (900 + number, 950 + int(action)) for number in range(1, 17) for action in Action}
PRIORS = {2: 0.75, 3: 0.25}


def made(policy, seed=0, **changes):
    settings = SearchSettings(**{"token_budget": 10**6, "expansion_budget": 400, "enough_passing": 999, **changes})
    return SearchTree("t", "p", (1,), HEADERS, settings.with_policy(policy), seed)


class World:
    """Answers expansions: every idea is new, a program passes as many of 10 tests as `worth` says of its first step."""

    def __init__(self, tree, worth=lambda first: 0, logprob=lambda n: -0.5, length=2):
        self.tree, self.worth, self.logprob, self.length = tree, worth, logprob, length
        self.drawn = 0

    def first_step(self, node):
        while node.depth > 1:
            node = self.tree.nodes[node.parent]
        return node.id

    def answer(self, expansion, priors=None):
        parent = self.tree.nodes[expansion.node]
        for slot, action in enumerate(self.tree.begin(expansion.id, priors or (PRIORS if parent.depth else None))):
            self.drawn += 1
            judgement = None
            text = f"idea {self.drawn}\n{END}"
            if action is Action.CODE:
                text = f"x = {self.drawn}\n```"
                passed = self.worth(self.first_step(parent))
                verdict = Verdict.ACCEPTED if passed == 10 else Verdict.WRONG_ANSWER
                judgement = Judgement(verdict, True, passed, 10)
            sample = Sample((1,) * self.length, (self.logprob(self.drawn),) * self.length, text, "stop")
            self.tree.tell(expansion.id, slot, Outcome(sample, judgement))
        return expansion

    def step(self):
        expansion = self.tree.ask()
        return None if expansion is None else self.answer(expansion)


def test_sequential_halving_golden():
    # Four candidates, 16 simulations, two phases of eight: two visits each, then four for each of the better two.
    assert considered_visits(4, 16) == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert considered_visits(1, 3) == [0, 1, 2]
    assert considered_visits(3, 5) == [0, 0, 0, 1, 1]
    for candidates in range(1, 17):
        for budget in range(1, 65):
            assert len(considered_visits(candidates, budget)) == budget


def test_gumbel_halves_the_candidates_and_keeps_the_better_half():
    tree = made("gumbel", root_samples=4, samples=2, expansion_budget=17, max_depth=8)
    worth = {1: 1, 2: 9, 3: 5, 4: 0}
    world = World(tree, worth.__getitem__)
    for _ in range(17):
        world.step()
    asked = {i: tree.nodes[i].asked for i in range(1, 5)}
    assert asked[1] == asked[4] == 2  # out after the first phase
    assert asked[2] == asked[3] == 6


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0)])
def test_before_the_first_visit_the_likeliest_child_is_expanded_whichever_came_first(order):
    """A merged child is as likely as its samples together, not as the one that came first."""
    tree = made("puct", root_samples=4)
    expansion = tree.ask()
    tree.begin(expansion.id)
    texts = [("rare", -3.0), ("once", -1.0), ("twice", -1.2), ("twice", -1.4)]
    for slot in order:
        text, logprob = texts[slot]
        tree.tell(expansion.id, slot, Outcome(Sample((slot,), (logprob,), f"{text}\n{END}", "stop")))
    assert tree.nodes[tree.ask().node].text == "twice"
    priors = {tree.nodes[i].text: tree.nodes[i].prior for i in tree.root.children}
    total = sum(math.exp(logprob) for _, logprob in texts)
    assert priors["twice"] == pytest.approx((math.exp(-1.2) + math.exp(-1.4)) / total)
    assert priors["rare"] == pytest.approx(math.exp(-3.0) / total)


def test_paths_that_met_are_each_gone_on_with_once():
    """Also where the next steps of both are drawn at the same time."""
    tree = made("best-of-n")
    for expansion in [tree.ask(), tree.ask()]:
        tree.begin(expansion.id)
        tree.tell(expansion.id, 0, Outcome(Sample((1,), (-1.0,), f"same\n{END}", "stop")))
    first, second = tree.ask(), tree.ask()
    assert first.node == second.node == 1
    for expansion in (first, second):
        tree.begin(expansion.id, {2: 0.0, 3: 1.0})
        tree.tell(expansion.id, 0, Outcome(Sample((expansion.id,), (-1.0,), "no code", "length")))
    assert [tree.ask().node for _ in range(3)] == [0, 0, 0]


def test_gumbel_halves_within_the_token_budget_too():
    """50 tokens a sample: 4 samples at the root, then 16 expansions of 2, as many as in the test above."""
    tree = made("gumbel", root_samples=4, samples=2, token_budget=50 * (4 + 16 * 2), max_depth=8)
    worth = {1: 1, 2: 9, 3: 5, 4: 0}
    world = World(tree, worth.__getitem__, length=50)
    while not tree.finished():
        world.step()
    asked = {i: tree.nodes[i].asked for i in range(1, 5)}
    assert asked[1] == asked[4] == 2
    assert asked[2] == asked[3] == 6


def test_gumbel_prefers_likely_candidates_where_nothing_else_is_known():
    tree = made("gumbel", root_samples=4)
    world = World(tree, logprob=lambda n: -1.0 / n)
    world.step()
    assert world.step().node == 4


@pytest.mark.parametrize("seed", range(5))
def test_faithful_runs_one_expansion_at_a_time_and_rolls_out_to_a_terminal(seed):
    tree = made("faithful", seed, max_depth=4)
    s = tree.settings
    assert (s.samples, s.root_samples, s.temperature, s.top_p, s.uct_weight, s.leaves_in_flight) == (
        3,
        3,
        0.8,
        0.95,
        2.0,
        1,
    )
    world = World(tree, lambda first: 5)
    rollouts = 0
    last = None
    for _ in range(40):
        expansion = tree.ask()
        assert tree.ask() is None
        world.answer(expansion)
        node = tree.nodes[expansion.node]
        rollouts += last is not None and node.parent == last
        last = node.id
    assert 10 < rollouts < 40
    visited = Counter(tree.nodes[i].asked > 0 for i in tree.root.children)
    assert visited[True] > 1


def test_faithful_chooses_at_random_but_the_same_for_the_same_seed():
    def nodes(seed):
        tree = made("faithful", seed)
        world = World(tree, lambda first: first)
        return [world.step().node for _ in range(20)]

    assert nodes(1) == nodes(1)
    assert len({tuple(nodes(seed)) for seed in range(8)}) > 4


def test_best_of_n_draws_independent_paths_as_the_policy_would():
    tree = made("best-of-n", expansion_budget=3000)
    world = World(tree, lambda first: 10)
    rng = random.Random(0)
    running = []
    for _ in range(2500):
        while len(running) < 4:
            running.append(tree.ask())
        world.answer(running.pop(rng.randrange(len(running))))
    inner = [n for n in tree.nodes[1:] if not n.terminal]
    assert all(len(n.children) <= 1 for n in inner)
    done = [p for p in tree.paths() if p.program]
    lengths = Counter(len(p.steps) for p in done)
    # Code comes with probability 1/4 at step 2, again at step 3, and always at step 4.
    assert lengths[2] / len(done) == pytest.approx(0.25, abs=0.06)
    assert lengths[3] / len(done) == pytest.approx(0.1875, abs=0.06)
    assert max(lengths) == 4


def test_a_path_of_best_of_n_that_meets_another_goes_on_by_itself():
    tree = made("best-of-n", max_depth=2)
    for count in (1, 2):
        expansion = tree.ask()
        tree.begin(expansion.id)
        tree.tell(expansion.id, 0, Outcome(Sample((1,), (-0.1,), f"same\n{END}", "stop")))
        assert len(tree.nodes) == 1 + count
        expansion = tree.ask()
        assert expansion.node == 1
        tree.begin(expansion.id)
        judgement = Judgement(Verdict.WRONG_ANSWER, True, 1, 2)
        tree.tell(expansion.id, 0, Outcome(Sample((1, count), (-0.1, -0.1), f"x = {count}\n```", "stop"), judgement))
    assert tree.root.sampled == 2


@pytest.mark.parametrize("how", ["lost", "pruned", "never begun"])
def test_a_path_whose_next_step_was_lost_tries_again(how):
    tree = made("best-of-n", max_depth=4)
    world = World(tree)
    world.step()
    state = tree.root.children[0]
    again = tree.ask()
    assert again.node == state
    if how != "never begun":
        tree.begin(again.id, PRIORS)
    tree.abandon(again.id, "gone", pruned=how == "pruned")
    assert tree.ask().node == state
    assert tree.ask().node == 0  # and once only


def test_beam_tries_a_lost_state_again_before_it_goes_on():
    tree = made("beam", root_samples=3, samples=2, beam_width=2)
    world = World(tree)
    world.step()
    kept = [tree.ask(), tree.ask()]
    world.answer(kept[0])
    tree.abandon(kept[1].id, "gone")
    again = tree.ask()
    assert again.node == kept[1].node
    world.answer(again)
    below = {tree.ask().node, tree.ask().node}
    assert all(tree.nodes[n].depth == 2 for n in below)


def test_beam_keeps_the_best_states_of_a_depth_and_begins_anew():
    tree = made("beam", beam_width=2, root_samples=5, samples=3, max_depth=4)
    # Before code was seen below them, the likelier states are the better ones.
    world = World(tree, lambda first: {3: 9, 5: 4}.get(first, 0), logprob=lambda n: -0.1 if n in (3, 5) else -2.0)
    world.step()
    level = [tree.ask(), tree.ask()]
    assert tree.ask() is None  # the next depth waits for both
    assert sorted(e.node for e in level) == [3, 5]
    for expansion in level:
        world.answer(expansion)
    children = [n for n in tree.nodes if n.depth == 2 and not n.terminal]
    deeper = [tree.ask(), tree.ask()]
    assert {e.node for e in deeper} <= {n.id for n in children}
    for expansion in deeper:
        world.answer(expansion)
    after = world.step()
    while tree.nodes[after.node].depth > 2:
        after = world.step()
    assert after.node == 0


@pytest.mark.parametrize("kind, finished", [("visits", 1.0), ("losses", 0.5)])
def test_virtual_loss(kind, finished):
    tree = made("puct", virtual_loss=kind, samples=1, root_samples=1, max_depth=3)
    world = World(tree, lambda first: 10)
    world.step()
    expansion = tree.ask()
    tree.begin(expansion.id, {2: 0.5, 3: 0.5})
    judgement = Judgement(Verdict.ACCEPTED, True, 10, 10)
    tree.tell(expansion.id, 0, Outcome(Sample((1,), (-0.1,), "x = 1\n```", "stop"), judgement))
    assert tree.q(tree.nodes[1]) == 1.0
    tree.nodes[1].in_flight += 1
    assert tree.q(tree.nodes[1]) == finished
