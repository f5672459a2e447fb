"""Real DeepSpeed ranks in Ray actors: one rank against plain torch, two ranks (ZeRO-2, ZeRO-3) against one."""

from __future__ import annotations

import pytest
import torch
from made_learning import LEARNING_RATE, examples, settings, spec
from safetensors.torch import load_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]


def train(model, world, zero, tmp_path, data=None, **options):
    """Three optimizer steps of SFT; returns losses and the published weights."""
    from learners.group import LearnerGroup

    group = LearnerGroup(world, 1)
    try:
        group.load(spec(model, zero=zero, **options), seed=0)
        rows = []
        group.fit("sft", data or examples(), settings(), 120, rows.append)
        file = tmp_path / f"w{world}z{zero}.safetensors"
        group.publish(file)
        return [row["sft/loss"] for row in rows], load_file(file)
    finally:
        group.close()


def by_hand(model):
    """The same three steps in plain torch, one sequence at a time."""
    from transformers import AutoModelForCausalLM

    lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    optimizer = torch.optim.AdamW(lm.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    losses = []
    for _ in range(3):
        total, count = 0.0, 0
        optimizer.zero_grad()
        for example in examples():
            ids = torch.tensor([example.token_ids])
            logp = lm(ids).logits[0, :-1].log_softmax(-1)
            mask = torch.tensor(example.loss_mask[1:], dtype=torch.float32)
            loss = -(logp.gather(-1, ids[0, 1:].unsqueeze(-1)).squeeze(-1) * mask).sum()
            loss.backward()
            total, count = total + loss.item(), count + mask.sum().item()
        for p in lm.parameters():
            p.grad /= count
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        optimizer.step()
        losses.append(total / count)
    return losses, lm.state_dict()


def assert_same_weights(ours, theirs, tolerance):
    for name, tensor in ours.items():
        assert torch.allclose(tensor.float(), theirs[name].float(), atol=tolerance), name


@pytest.mark.parametrize(("world", "zero", "recompute"), [(1, 2, True), (2, 2, False), (2, 3, True)])
def test_ranks_and_stages_train_like_plain_torch(local_ray, tiny, tmp_path, world, zero, recompute):
    losses, weights = train(tiny, world, zero, tmp_path, recompute=recompute)
    expected_losses, expected = by_hand(tiny)
    assert losses == pytest.approx(expected_losses, rel=1e-3)
    assert losses[-1] < losses[0]
    assert_same_weights(weights, expected, 2e-4)


@pytest.mark.parametrize(("world", "zero", "offload"), [(2, 1, "optimizer"), (1, 2, "optimizer"), (2, 3, "weights")])
def test_what_is_kept_in_host_memory_trains_the_same(local_ray, tiny, tmp_path, world, zero, offload):
    losses, weights = train(tiny, world, zero, tmp_path, offload=offload)
    expected_losses, expected = by_hand(tiny)
    assert losses == pytest.approx(expected_losses, rel=1e-3)
    assert_same_weights(weights, expected, 2e-4)


def test_what_the_model_cannot_learn_from_is_refused(local_ray, tiny, tmp_path):
    import ray
    from made_learning import VOCABULARY

    from learners.batches import Example
    from learners.group import LearnerGroup

    group = LearnerGroup(1, 1)
    try:
        group.load(spec(tiny), seed=0)
        foreign = [*examples()[:2], Example((1, VOCABULARY, 2), (0, 1, 1))]
        says = f"item 3 holds token {VOCABULARY}.*another tokenizer"
        with pytest.raises(ray.exceptions.RayTaskError, match=says):
            group.fit("sft", foreign, settings(), 120, print)
        with pytest.raises(ray.exceptions.RayTaskError, match="got nothing"):
            group.fit("sft", [], settings(), 120, print)
        with pytest.raises(ray.exceptions.RayTaskError, match=says):
            group.completion_logprobs(foreign, settings(), 120)
        # The rank goes on.
        assert group.fit("sft", examples(), settings(), 120, lambda row: None)
    finally:
        group.close()


def test_ranks_may_have_different_amounts_to_say(local_ray, tiny, tmp_path):
    """One rank's outputs come in several parts, the other's in one: ZeRO-3 must fetch the head as often on both."""
    from learners.batches import Example
    from learners.models import HEAD_ROWS

    ids = tuple(1 + (7 * i) % 90 for i in range(HEAD_ROWS + 100))
    uneven = [Example(ids, (1,) * len(ids), "long"), *examples()[:3]]
    one, _ = train(tiny, 1, 2, tmp_path, uneven)
    two, _ = train(tiny, 2, 3, tmp_path, uneven)
    assert two == pytest.approx(one, rel=1e-3)


def test_one_group_takes_models_in_turn_and_checkpoints_are_plain_directories(local_ray, tiny, tmp_path):
    from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

    from learners.group import LearnerGroup
    from reasoning.records import StepLabel, Trajectory

    group = LearnerGroup(1, 1)
    try:
        group.load(spec(tiny, dtype="bfloat16"), seed=0)
        ids = examples()[5].token_ids
        n = len(ids)
        scores = group.sequence_logprobs([ids], settings())[0]
        mask = (0,) * (n // 2) + (1,) * (n - n // 2)
        logprobs = tuple(m * s for m, s in zip(mask, (0.0, *scores), strict=True))
        trajectory = Trajectory(
            problem_id="p",
            token_ids=ids,
            loss_mask=mask,
            logprobs=logprobs,
            advantages=tuple(map(float, mask)),
            outcome=1.0,
        )
        rows = []
        group.fit("rl", [trajectory] * 4, settings(), 120, rows.append, clip=0.2, truncation=2.0)
        # The "sampler" is the learner itself, so there is no mismatch, and a rewarded path becomes more likely.
        assert rows[0]["rl/mismatch_kl"] == pytest.approx(0, abs=1e-3)
        assert rows[0]["rl/ess"] == pytest.approx(1, abs=1e-2)
        after = group.sequence_logprobs([ids], settings())[0]
        learned = [b - a for a, b, m in zip(scores, after, mask[1:], strict=True) if m]
        assert sum(learned) > 0
        policy = tmp_path / "policy"
        policy.mkdir()
        group.export(policy)
        assert AutoModelForCausalLM.from_pretrained(policy).config.vocab_size == 97
        assert (policy / "tokenizer_config.json").exists()

        group.load(spec(tiny, kind="value", dtype="bfloat16", rate=3e-3, prior=0.2), seed=0)
        labels = [
            StepLabel(
                problem_id="p",
                token_ids=e.token_ids,
                ends=(2, len(e.token_ids) - 1),
                targets=(0.9, 0.1),
                weights=(1, 1),
            )
            for e in examples()
        ]
        fresh = group.step_scores(labels, settings(), 60)
        assert all(v == pytest.approx(0.2, abs=1e-3) for row in fresh for v in row)
        group.fit("prm", labels, settings(epochs=10), 120, lambda row: None)
        fitted = group.step_scores(labels, settings(), 60)
        assert sum(row[0] for row in fitted) > sum(row[1] for row in fitted) + 0.5
        prm = tmp_path / "prm"
        prm.mkdir()
        group.export(prm)
        assert AutoModelForTokenClassification.from_pretrained(prm).config.num_labels == 1
        group.load(spec(prm, kind="value"), seed=0)
        again = group.step_scores(labels, settings(), 60)
        assert again[0] == pytest.approx(fitted[0], abs=0.02)
    finally:
        group.close()


def test_of_two_siblings_the_better_one_comes_out_above(local_ray, tiny):
    from learners.group import LearnerGroup
    from reasoning.records import StepLabel, StepPair

    group = LearnerGroup(1, 1)
    try:
        group.load(spec(tiny, kind="value", rate=3e-3), seed=0)
        pairs = [
            StepPair(
                problem_id="p",
                tree_id="t",
                prefix_ids=e.token_ids,
                chosen_ids=(7, n + 1),
                rejected_ids=(8, n + 1),
                chosen_value=1.0,
                rejected_value=0.0,
                margin=1.0,
                weight=0.5,
            )
            for n, e in enumerate(examples())
        ]
        rows = []
        group.fit("prm_pairs", pairs, settings(epochs=12), 120, rows.append, margin=0.5)
        assert rows[-1]["prm_pairs/accuracy"] == 1.0
        assert rows[-1]["prm_pairs/loss"] < rows[0]["prm_pairs/loss"] / 2
        ends = {"targets": (0.0,), "weights": (0.0,), "problem_id": "p"}
        for pair in pairs:
            labels = [
                StepLabel(token_ids=ids, ends=(len(ids) - 1,), **ends)
                for ids in (pair.prefix_ids + pair.chosen_ids, pair.prefix_ids + pair.rejected_ids)
            ]
            (better,), (worse,) = group.step_scores(labels, settings(), 60)
            assert better > worse
    finally:
        group.close()


def test_dpo_widens_the_margin(local_ray, tiny):
    from learners.batches import PreferenceExample
    from learners.group import LearnerGroup

    made = examples()
    pairs = [PreferenceExample(made[i], made[i + 1]) for i in range(6)]
    group = LearnerGroup(1, 1)
    try:
        group.load(spec(tiny), seed=0)
        rows = []
        group.fit("dpo", pairs, settings(epochs=6), 120, rows.append, beta=0.1)
        assert rows[0]["dpo/margin"] == pytest.approx(0, abs=1e-6)
        assert rows[-1]["dpo/margin"] > 0.05
        assert rows[-1]["dpo/loss"] < rows[0]["dpo/loss"]
    finally:
        group.close()


def test_a_loss_that_is_no_number_stops_with_a_word(local_ray, tiny):
    from ray.exceptions import RayTaskError

    from learners.group import LearnerGroup
    from reasoning.records import Trajectory

    ids = examples()[0].token_ids
    bad = Trajectory(
        problem_id="p",
        token_ids=ids,
        loss_mask=(1,) * len(ids),
        logprobs=(float("nan"),) * len(ids),
        advantages=(1.0,) * len(ids),
        outcome=1.0,
    )
    group = LearnerGroup(1, 1)
    try:
        group.load(spec(tiny), seed=0)
        with pytest.raises(RayTaskError, match="loss is nan"):
            group.fit("rl", [bad], settings(), 120, lambda row: None, clip=0.2, truncation=2.0)
    finally:
        group.close()
