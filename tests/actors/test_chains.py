"""Paths without search: actions drawn by the policy, failures with a kind."""

from collections import Counter

import pytest
from search_fakes import CODEC, PROMPT, FakeJudge, FakeSampler, chain

from actors.chains import CHAIN_ATTEMPTS
from reasoning.records import Action
from sandbox import Verdict


@pytest.mark.parametrize("prefer, actions", [(Action.CODE, [1, 3]), (Action.REFINE, [1, 2, 2, 3])])
def test_a_greedy_chain_takes_the_likelier_action(prefer, actions):
    sampler = FakeSampler(prefer=prefer)
    path = chain(sampler, FakeJudge(), greedy=True)
    assert [int(s.action) for s in path.steps] == actions
    assert all(draw.greedy for _, draw in sampler.draws)
    assert set(sampler.seeds) == {None}
    assert sampler.chosen == (1 if prefer is Action.CODE else 2)


def test_a_sampled_chain_draws_its_actions():
    counts = Counter(len(chain(FakeSampler(seed=s), FakeJudge(), seed=s).steps) for s in range(60))
    assert counts[2] > counts[3] > 0


def test_a_chain_is_a_whole_path():
    path = chain(FakeSampler(), FakeJudge(), temperature=0.6)
    assert path.complete
    assert (path.problem_id, path.tree_id, path.prompt_ids, path.temperature) == ("p", "c", PROMPT, 0.6)
    assert path.verdict in (Verdict.ACCEPTED, Verdict.WRONG_ANSWER)
    assert path.tests_total == 4
    assert path.value == pytest.approx(0.1 + 0.9 * path.tests_passed / 4)
    assert path.program == path.steps[-1].text.removeprefix("```python\n").removesuffix("```")
    assert [s.header_ids for s in path.steps] == [
        CODEC.header_ids(n, s.action) for n, s in enumerate(path.steps, start=1)
    ]


def test_a_malformed_chain_is_a_zero():
    judge = FakeJudge()
    path = chain(FakeSampler(bad=1.0), judge)
    assert (path.value, path.program, path.verdict, path.compiles) == (0.0, None, None, False)
    assert len(path.steps) == 1
    assert path.complete
    assert not path.solved
    assert judge.submissions == []


def test_a_chain_lost_on_every_attempt_is_none_and_no_zero():
    sampler = FakeSampler(fail=1.0)
    assert chain(sampler, FakeJudge()) is None
    assert len(sampler.draws) == CHAIN_ATTEMPTS
    judge = FakeJudge(lost=1.0)
    assert chain(FakeSampler(), judge) is None
    assert len(judge.submissions) == CHAIN_ATTEMPTS


def test_a_chain_is_tried_again_with_another_seed():
    found = [chain(FakeSampler(fail=0.3, seed=s), FakeJudge(lost=0.3), seed=s) for s in range(30)]
    kept = [p for p in found if p is not None]
    assert len(kept) > 15
    assert all(p.value == 1.0 or p.value == pytest.approx(0.1 + 0.9 / 4) for p in kept)


def test_a_judge_that_raises_is_infrastructure_for_a_chain_too():
    judge = FakeJudge(raises=1.0)
    assert chain(FakeSampler(), judge) is None
    assert len(judge.submissions) == CHAIN_ATTEMPTS
