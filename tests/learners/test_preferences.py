"""Preferences on real DeepSpeed ranks: references, the term that keeps the chosen likely, the bound on their fall."""

from __future__ import annotations

from dataclasses import replace

import pytest
import ray
import torch
from made_learning import examples, settings, spec

from learners.adapters import Lora
from learners.batches import PreferenceExample

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]

ALL_PAIRS = {"batch_size": 6, "epochs": 6}
"""Settings of six optimizer steps over the same six pairs."""


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


@pytest.fixture(scope="module")
def taught(one, tiny, tmp_path_factory):
    """A model that has learnt both completions of every pair by heart, so that they can only become less likely."""
    one.load(spec(tiny, rate=1e-2), seed=0)
    both = [e for p in pairs() for e in (p.chosen, p.rejected)]
    rows = []
    one.fit("sft", both, settings(batch_size=len(both), epochs=40, micro_tokens=2048), 120, rows.append)
    assert rows[-1]["sft/loss"] < 0.3
    path = tmp_path_factory.mktemp("taught")
    one.export(path)
    return path


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
        for name in ("loss", "margin", "chosen_logprob_change", "chosen_change_per_token"):
            assert column(rows, name) == pytest.approx(column(expected, name), rel=1e-2, abs=2e-3), name
    # References that are not the starting weights' are believed, too.
    wrong = [replace(p, reference=(p.reference[0] - 1, p.reference[1])) for p in given]
    assert preferred(one, tiny, wrong)[0]["dpo/margin"] == pytest.approx(0.5, abs=1e-3)


def test_the_sft_term_keeps_the_chosen_likely(one, taught):
    without, beside = (preferred(one, taught, pairs(), fit=ALL_PAIRS, sft_weight=weight) for weight in (0.0, 2.0))
    assert column(without, "chosen_change_per_token")[-1] < -0.5
    assert column(beside, "chosen_change_per_token")[-1] > -0.1
    assert beside[-1]["dpo/margin"] > 1  # and it still prefers
    assert column(beside, "stopped") == [0.0] * 6


@pytest.mark.parametrize(("zero", "lora"), [(2, Lora(2, 4.0)), (3, None)])
def test_the_bound_ends_training_on_both_ranks_at_the_same_step(two, taught, tmp_path, zero, lora):
    options = {"zero": zero, "model": {"lora": lora, "rate": 3e-2 if lora else 1e-2}, "fit": ALL_PAIRS}
    changes = column(preferred(two, taught, pairs(), **options), "chosen_change_per_token")
    last = next(i for i, change in enumerate(changes) if change < -0.2)
    assert 0 < last < len(changes) - 1  # so that there is something to end
    bound = -(changes[last] + min(changes[:last])) / 2

    rows = preferred(two, taught, pairs(), most_drop=bound, **options)
    assert column(rows, "stopped") == [0.0] * last + [1.0]
    assert column(rows, "steps") == [6] * (last + 1)
    assert column(rows, "chosen_change_per_token") == pytest.approx(changes[: last + 1], abs=1e-3)
    of_ranks = ray.get([rank.progress.remote(0) for rank in two.ranks], timeout=60)
    for name in ("step", "stopped", "chosen_change_per_token"):
        assert column(of_ranks[0], name) == column(of_ranks[1], name), name
    two.publish(tmp_path / "weights.safetensors")  # the ranks are still in step
    assert (tmp_path / "weights.safetensors").stat().st_size > 0
