"""Micro-batches: nothing lost, budgets kept, the right tokens selected."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from learners.batches import ROUNDING, micro_batches, optimizer_batches, pad, padded_length

lengths = st.lists(st.integers(1, 300), min_size=1, max_size=60)


@given(lengths, st.integers(64, 1024))
def test_micro_batches_keep_every_item_within_the_budget(items, budget):
    groups = micro_batches(items, lambda n: n, budget)
    assert sorted(x for g in groups for x in g) == sorted(items)
    for group in groups:
        assert len(group) == 1 or padded_length(max(group)) * len(group) <= budget


@given(lengths, st.integers(1, 16), st.integers(1, 3))
def test_every_epoch_sees_every_item_once(items, size, epochs):
    tagged = list(enumerate(items))
    batches = optimizer_batches(tagged, size, epochs, seed=1)
    per_epoch = -(-len(tagged) // size)
    assert len(batches) == epochs * per_epoch
    for epoch in range(epochs):
        seen = [x for b in batches[epoch * per_epoch : (epoch + 1) * per_epoch] for x in b]
        assert sorted(seen) == tagged


@given(
    st.lists(st.lists(st.tuples(st.integers(5, 50), st.booleans()), min_size=2, max_size=12), min_size=1, max_size=5)
)
def test_padding_selects_the_predictions_of_the_masked_tokens(rows):
    sequences = [[i for i, _ in row] for row in rows]
    masks = [[int(m) for _, m in row] for row in rows]
    batch = pad(sequences, masks, pad_id=0)
    expected = [i for s, m in zip(sequences, masks, strict=True) for i, k in list(zip(s, m, strict=True))[1:] if k]
    assert batch.targets.tolist() == expected
    assert batch.attention.sum().item() == sum(map(len, sequences))
    assert batch.token_ids.shape[1] % ROUNDING == 0
