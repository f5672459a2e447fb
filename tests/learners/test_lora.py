"""Adapters on real DeepSpeed ranks: the loss falls, the base stays, and what comes out is a plain checkpoint."""

from __future__ import annotations

import pytest
import torch
from made_learning import examples, settings, spec
from safetensors.torch import load_file

from learners.adapters import Lora

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]


@pytest.fixture(scope="module", params=[1, 2], ids=["one rank", "two ranks"])
def group(request, local_ray):
    from learners.group import LearnerGroup

    made = LearnerGroup(request.param, 1)
    yield made
    made.close()


def said_by_transformers(directory, sequences, dtype=torch.float32):
    """Log-probabilities of every token after the first, from the directory alone."""
    from transformers import AutoModelForCausalLM

    lm = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    result = []
    with torch.no_grad():
        for ids in sequences:
            logp = lm(torch.tensor([ids])).logits[0, :-1].float().log_softmax(-1)
            result.append(logp.gather(-1, torch.tensor(ids[1:]).unsqueeze(-1)).squeeze(-1).tolist())
    return result


def flat(rows):
    return torch.tensor([value for row in rows for value in row])


def exported(group, path):
    path.mkdir()
    group.export(path)
    return path


@pytest.mark.parametrize("zero", [2, 3])
def test_rank_1_adapters_learn_beside_a_base_that_stays(group, tiny, tmp_path, zero):
    lora = Lora(1, 2.0, ("q_proj", "v_proj", "down_proj"))
    group.load(spec(tiny, zero=zero, rate=0.1, lora=lora), seed=0)
    sequences = [e.token_ids for e in examples()]
    # Nothing is learnt yet, so nothing is said differently.
    before = group.sequence_logprobs(sequences, settings())
    assert torch.allclose(flat(before), flat(said_by_transformers(tiny, sequences)), atol=1e-4)

    rows = []
    group.fit("sft", examples(), settings(epochs=12), 120, rows.append)
    assert rows[-1]["sft/loss"] < rows[0]["sft/loss"] - 0.1

    learned = group.sequence_logprobs(sequences, settings())
    checkpoint = exported(group, tmp_path / "checkpoint")
    told = said_by_transformers(checkpoint, sequences)
    assert (flat(learned) - flat(before)).abs().max() > 0.1
    assert torch.allclose(flat(told), flat(learned), atol=1e-4)

    old, new = load_file(tiny / "model.safetensors"), load_file(checkpoint / "model.safetensors")
    assert old.keys() == new.keys()
    for name, weight in new.items():
        if name.split(".")[-2] in lora.targets:
            change = torch.linalg.svdvals((weight - old[name]).float())
            assert change[0] > 1e-3, name
            assert change[1] < 1e-3 * change[0], name  # of rank 1
        else:
            assert torch.equal(weight, old[name]), name

    group.publish(tmp_path / "weights.safetensors")
    published = load_file(tmp_path / "weights.safetensors")
    assert published.keys() == new.keys()
    assert all(torch.equal(published[name], new[name]) for name in new)


def test_a_bf16_checkpoint_says_what_the_learner_says(group, tiny, tmp_path):
    group.load(spec(tiny, dtype="bfloat16", rate=3e-2, lora=Lora(2, 4.0)), seed=0)
    rows = []
    group.fit("sft", examples(), settings(epochs=12), 120, rows.append)
    assert rows[-1]["sft/loss"] < rows[0]["sft/loss"] - 0.1
    sequences = [e.token_ids for e in examples()]
    learned = flat(group.sequence_logprobs(sequences, settings()))
    told = flat(said_by_transformers(exported(group, tmp_path / "checkpoint"), sequences, torch.bfloat16))
    base = flat(said_by_transformers(tiny, sequences, torch.bfloat16))
    assert (told - learned).abs().mean() < 0.02
    assert (base - learned).abs().mean() > 0.15


def test_a_value_model_trains_its_head_beside_the_adapters(group, tiny, tmp_path):
    from reasoning.records import StepLabel

    labels = [
        StepLabel(
            problem_id="p", token_ids=e.token_ids, ends=(2, len(e.token_ids) - 1), targets=(0.9, 0.1), weights=(1, 1)
        )
        for e in examples()
    ]
    group.load(spec(tiny, kind="value", rate=2e-2, prior=0.2, lora=Lora(2, 4.0)), seed=0)
    group.fit("prm", labels, settings(epochs=10), 120, lambda row: None)
    fitted = group.step_scores(labels, settings(), 60)
    assert sum(row[0] for row in fitted) > sum(row[1] for row in fitted) + 0.5
    checkpoint = exported(group, tmp_path / "prm")
    assert load_file(checkpoint / "model.safetensors")["score.weight"].abs().max() > 0
    group.load(spec(checkpoint, kind="value"), seed=0)
    again = group.step_scores(labels, settings(), 60)
    assert all(a == pytest.approx(f, abs=1e-4) for a, f in zip(again, fitted, strict=True))


def test_a_target_that_the_model_lacks_stops_the_load(group, tiny):
    from ray.exceptions import RayTaskError

    with pytest.raises(
        RayTaskError, match=r"lora\.targets: the model has no linear layer c_attn; use some of down_proj"
    ):
        group.load(spec(tiny, lora=Lora(1, 1.0, ("c_attn",))), seed=0)
