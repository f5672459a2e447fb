"""Preferences on real DeepSpeed ranks: how likely completions are, and what DPO makes of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import ray
import torch
from made_learning import examples, settings, spec

from learners.batches import PreferenceExample

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]


def group_of(world):
    from learners.group import LearnerGroup

    made = LearnerGroup(world, 1)
    yield made
    made.close()


@pytest.fixture(scope="module")
def one(local_ray):
    yield from group_of(1)


@pytest.fixture(scope="module")
def two(local_ray):
    yield from group_of(2)


def pairs(count=6):
    """A completion, and the same with its first token changed: what they share is as likely as not to fall."""
    made = []
    for e in examples(count):
        first = e.loss_mask.index(1)
        ids = (*e.token_ids[:first], e.token_ids[first] % 96 + 1, *e.token_ids[first + 1 :])
        made.append(PreferenceExample(e, replace(e, token_ids=ids)))
    return made


def by_hand(model, sequences):
    from transformers import AutoModelForCausalLM

    lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    sums = []
    with torch.no_grad():
        for e in sequences:
            ids = torch.tensor([e.token_ids])
            logp = lm(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:].unsqueeze(-1)).squeeze(-1)
            sums.append((logp * torch.tensor(e.loss_mask[1:])).sum().item())
    return sums


def test_completions_are_as_likely_on_every_number_of_ranks(one, two, tiny):
    sequences = examples(7)  # seven micro-batches: one rank of two has nothing left in the end
    few = settings(micro_tokens=1)
    expected = by_hand(tiny, sequences)
    for group, zero in ((one, 2), (two, 2), (two, 3)):
        group.load(spec(tiny, zero=zero), seed=0)
        assert group.completion_logprobs(sequences, few, 60) == pytest.approx(expected, abs=1e-3)
    for rank in two.ranks:  # each of them knows all
        assert ray.get(rank.completion_logprobs.remote([], few), timeout=60) == []
    shared = [rank.completion_logprobs.remote(sequences, few) for rank in two.ranks]
    for found in ray.get(shared, timeout=60):
        assert found == pytest.approx(expected, abs=1e-3)


def preferred(group, tiny, data, zero=2, **options):
    """The rows of a DPO run of six steps, by default of two pairs each."""
    group.load(spec(tiny, zero=zero, **{"rate": 1e-2, **options.pop("model", {})}), seed=0)
    rows = []
    fit = settings(**options.pop("fit", {"batch_size": 2, "epochs": 2}))
    group.fit("dpo", data, fit, 120, rows.append, **{"beta": 0.5, **options})
    return rows


def column(rows, name):
    return [row[f"dpo/{name}"] for row in rows]


def test_references_given_train_as_those_computed(one, two, tiny):
    one.load(spec(tiny), seed=0)
    said = one.completion_logprobs([e for p in pairs() for e in (p.chosen, p.rejected)], settings(), 60)
    given = [replace(p, reference=(said[2 * i], said[2 * i + 1])) for i, p in enumerate(pairs())]
    some = [p if i % 2 else q for i, (p, q) in enumerate(zip(pairs(), given, strict=True))]
    expected = preferred(one, tiny, pairs())
    assert expected[-1]["dpo/margin"] > 0.1
    for group, data in ((one, given), (two, given), (two, some), (two, pairs())):
        rows = preferred(group, tiny, data)
        for name in ("loss", "margin", "chosen_logprob_change"):
            assert column(rows, name) == pytest.approx(column(expected, name), rel=1e-2, abs=2e-3), name
    # References that are not the starting weights' are believed, too.
    wrong = [replace(p, reference=(p.reference[0] - 1, p.reference[1])) for p in given]
    assert preferred(one, tiny, wrong)[0]["dpo/margin"] == pytest.approx(0.5, abs=1e-3)
