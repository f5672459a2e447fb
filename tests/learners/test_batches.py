"""Micro-batches: nothing lost, budgets kept, the right tokens selected."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learners.batches import (
    ROUNDING,
    Example,
    PreferenceExample,
    micro_batches,
    optimizer_batches,
    pack,
    pad,
    padded_length,
    predicted,
    require_readable,
)

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


masked = st.lists(
    st.lists(st.tuples(st.integers(5, 9), st.booleans()), min_size=2, max_size=12), min_size=1, max_size=5
)


@given(masked, st.sampled_from(["padded", "packed", "tree"]))
def test_the_outputs_that_predict_the_masked_tokens_count(rows, packing):
    sequences = [[i for i, _ in row] for row in rows]
    masks = [[int(m) for _, m in row] for row in rows]
    points = list(map(predicted, masks))
    made = (
        pad(sequences, points, 0)
        if packing == "padded"
        else pack(sequences, points, [n % 2 for n in range(len(rows))], 0, packing == "tree")
    )
    expected = [
        (row, s[t - 1], s[t])
        for row, (s, m) in enumerate(zip(sequences, masks, strict=True))
        for t in range(1, len(s))
        if m[t]
    ]
    before = made.token_ids[made.select]
    before = before if made.gather is None else before[made.gather]
    found = zip(made.owners.tolist(), before.tolist(), made.targets.tolist(), strict=True)
    assert list(found) == expected
    assert made.token_ids.shape[1] % ROUNDING == 0
    counts = made.sums(made.targets.float(), len(rows))
    assert counts.tolist() == [sum(t for row, _, t in expected if row == n) for n in range(len(rows))]


def test_padding_is_attended_to_by_nobody():
    made = pad([[5, 6, 7], [8]], [[0], []], 0)
    assert made.attention[:, :4].tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    packed = pack([[5, 6, 7], [5, 8]], [[], []], [0, 0], 0, shared=True)
    allowed = packed.attention[0, 0]
    # 5 6 7 and, after the same 5, 8; then padding.
    assert [row.nonzero()[:, 0].tolist() for row in allowed[:6]] == [[0], [0, 1], [0, 1, 2], [0, 3], [4], [5]]
    assert packed.positions[0, :4].tolist() == [0, 1, 2, 1]


@pytest.mark.parametrize(
    "items, says",
    [
        ([[1, 2], []], "item 2 has no tokens"),
        ([[1, 9], [10]], r"item 2 holds token 10; use 0 to 9.*another tokenizer"),
        ([[1, -1]], "item 1 holds token -1"),
        ([Example((1, 10), (0, 1))], "item 1 holds token 10"),
        ([PreferenceExample(Example((1, 2), (0, 1)), Example((1, 11), (0, 1)))], "token 11"),
    ],
)
def test_what_a_model_cannot_read(items, says):
    with pytest.raises(ValueError, match=says):
        require_readable(items, 10)
    require_readable([[0, 9], Example((1, 2), (0, 1))], 10)
