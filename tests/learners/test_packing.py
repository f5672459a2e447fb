"""Rows of many sequences: nothing lost, budgets kept, and every sequence computed as it would be alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForTokenClassification

from learners.batches import attention_mask, pack, pad
from learners.models import PolicyModel, ValueModel
from learners.packing import Row, lay_out, rows

# Few tokens, so that many beginnings are equal.
sequences = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=8)


@given(sequences, st.booleans())
def test_a_row_holds_every_sequence_and_each_shared_beginning_once(given_, shared):
    layout = lay_out(given_, shared)
    assert [[layout.token_ids[i] for i in places] for places in layout.places] == given_
    assert [[layout.positions[i] for i in places] for places in layout.places] == [[*range(len(s))] for s in given_]
    beginnings = {tuple(s[: n + 1]) for s in given_ for n in range(len(s))}
    assert len(layout.token_ids) == (len(beginnings) if shared else sum(map(len, given_)))


@given(sequences, st.booleans())
def test_a_token_attends_to_what_stands_before_it_in_its_sequence(given_, shared):
    layout = lay_out(given_, shared)
    allowed = attention_mask(layout, len(layout.token_ids) + 3)
    for places in layout.places:
        for n, place in enumerate(places):
            assert allowed[place].nonzero()[:, 0].tolist() == places[: n + 1]
    assert not allowed.triu(1).any()
    assert allowed.diagonal().all()


@given(sequences, st.booleans(), st.integers(1, 30))
def test_groups_keep_every_item_and_their_rows_the_budget(given_, shared, most):
    items = list(enumerate(given_))
    groups = rows(items, lambda item: [item[1]], most, shared)
    assert sorted(item for group, _ in groups for item in group) == items
    for group, size in groups:
        assert size == len(lay_out([s for _, s in group], shared).token_ids)
        assert group and (size <= most or len(group) == 1)


@pytest.mark.parametrize("shared", [True, False])
def test_tokens_are_spread_over_the_rows(shared):
    # 12 sequences of 10 are two rows of 100: of 60 each, not of 100 and 20.
    items = [[n, *range(20, 29)] for n in range(12)]
    groups = rows(items, lambda item: [item], 100, shared)
    assert [size for _, size in groups] == [60, 60]
    # What cannot be split stays.
    assert sorted(size for _, size in rows([[1] * 90, [2] * 30], lambda item: [item], 100, shared)) == [30, 90]


def test_a_row_is_longer_where_a_beginning_is_computed_once_less():
    groups = [[[group] * 128 + [group, n] * 64 for n in range(8)] for group in range(2)]
    items = [sequence for group in groups for sequence in group]
    # A group is its prompt, a token that all go on with, and eight times the other 127.
    assert [size for _, size in rows(items, lambda s: [s], 1024, True, 2048)] == [1145, 1145]
    for longest in (None, 1024, 1100):
        found = rows(items, lambda s: [s], 1024, True, longest)
        assert len(found) == 3 and max(size for _, size in found) <= 1024
    # Nothing is shared: nothing is gained.
    alone = [[n] * 300 for n in range(8)]
    assert max(size for _, size in rows(alone, lambda s: [s], 1024, True, 2048)) <= 1024


@given(sequences)
def test_a_row_takes_no_more_than_it_may(given_):
    row = Row()
    for sequence in given_:
        assert row.add([sequence], 10**6)
    before = row.tokens
    assert not row.add([[7, 8, 9]], before + 2)
    assert row.tokens == before and row.add([[7, 8, 9]], before + 3)


def test_samples_of_one_prompt_come_together():
    prompts = [[n] * 20 for n in range(4)]
    samples = [[*prompts[n % 4], 9, n] for n in range(16)]
    groups = rows(samples, lambda s: [s], 30, shared=True)
    assert [len({s[0] for s in group}) for group, _ in groups] == [1] * 4


def tiny(kind):
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation="sdpa",
        num_labels=1,
    )
    torch.manual_seed(0)
    return (
        PolicyModel(LlamaForCausalLM(config)) if kind == "policy" else ValueModel(LlamaForTokenClassification(config))
    )


PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
TREE = [
    [*PROMPT, 10, 11, 12],
    [*PROMPT, 10, 11, 13, 14, 15],
    [*PROMPT, 10, 20],
    [*PROMPT, 10, 11, 12],
    [7, 8, 9, 10],
    PROMPT,
]
ROWS = [0, 0, 1, 1, 0, 1]
POINTS = [[7, 8, 9], [7, 9, 11], [8], [7, 8, 9], [0, 2], []]


def outputs(kind, packing):
    """What the model says where it counts, and the gradients of a weighted sum of it."""
    model = tiny(kind).eval()  # the head for values drops some of its inputs in training
    batch = pad(TREE, POINTS, 0) if packing == "padded" else pack(TREE, POINTS, ROWS, 0, packing == "tree")
    found = model(**batch.inputs, targets=batch.targets)[0] if kind == "policy" else model(**batch.inputs)
    (found * torch.linspace(-1, 2, len(found))).sum().backward()
    return found.detach(), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("packing", ["packed", "tree"])
@pytest.mark.parametrize("kind", ["policy", "value"])
def test_packed_sequences_have_the_outputs_and_gradients_of_padded_ones(kind, packing):
    expected, gradients = outputs(kind, "padded")
    found, own = outputs(kind, packing)
    assert torch.allclose(found, expected, atol=1e-5)
    for name, gradient in gradients.items():
        assert torch.allclose(own[name], gradient, atol=1e-5), name
    assert any(g.abs().max() > 0.01 for g in gradients.values())


@pytest.mark.parametrize("rows_at_once", [1, 3, 512])
@pytest.mark.parametrize("warmth", [1.0, 0.7, "equal", "mixed"])
def test_outputs_do_not_depend_on_how_many_logits_are_in_memory(monkeypatch, rows_at_once, warmth):
    model = tiny("policy")
    batch = pack(TREE, POINTS, ROWS, 0, True)
    count = len(batch.targets)
    own = {"equal": torch.full((count,), 0.7), "mixed": torch.linspace(0.5, 2.0, count)}.get(warmth, warmth)
    hidden = model.lm.model(
        input_ids=batch.token_ids, attention_mask=batch.attention, position_ids=batch.positions
    ).last_hidden_state
    logits = torch.nn.functional.linear(hidden[batch.select], model.lm.lm_head.weight)[batch.gather]
    logp = (logits / (own.unsqueeze(-1) if isinstance(own, torch.Tensor) else own)).log_softmax(-1)
    expected = logp[torch.arange(count), batch.targets]
    gradient = torch.autograd.grad(expected.square().sum(), model.lm.model.layers[0].mlp.up_proj.weight)[0]

    monkeypatch.setattr("learners.models.HEAD_ROWS", rows_at_once)
    found, entropy = model(**batch.inputs, targets=batch.targets, temperature=own, with_entropy=True)
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(entropy, -(logp.exp() * logp).sum(-1), atol=1e-5)
    assert not entropy.requires_grad
    again = torch.autograd.grad(found.square().sum(), model.lm.model.layers[0].mlp.up_proj.weight)[0]
    assert torch.allclose(again, gradient, atol=1e-5)


def test_nothing_to_say_is_no_output():
    batch = pad([[1, 2, 3]], [[]], 0)
    found, entropy = tiny("policy")(**batch.inputs, targets=batch.targets, with_entropy=True)
    assert found.shape == entropy.shape == (0,)
    found.sum().backward()  # what counts for nothing takes part in the ranks' collectives all the same
