"""Adapters: what may be asked for, what they leave alone, and that folding them in changes nothing that is said."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.adapters import PROJECTIONS, Lora, inject, merged


@pytest.mark.parametrize("rank", [0, -1, 1.5, True])
def test_a_rank_is_a_whole_number_from_1_on(rank):
    with pytest.raises(ValueError, match=rf"lora\.rank: got {rank!r}; use .* 16"):
        Lora(rank, 1.0)


@pytest.mark.parametrize("alpha", [0.0, -2.0, math.nan, math.inf, "2"])
def test_alpha_is_a_number_above_0(alpha):
    with pytest.raises(ValueError, match=rf"lora\.alpha: got {alpha!r}; use .* 32"):
        Lora(1, alpha)


@pytest.mark.parametrize("targets", [(), "q_proj", ("q_proj", "q_proj"), ("",), ["q_proj"]])
def test_targets_are_different_names(targets):
    with pytest.raises(ValueError, match=r"lora\.targets: got .*; use a tuple of different names"):
        Lora(1, 1.0, targets)


def plain_llama(**overrides):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 31, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, **overrides)).eval()


def perturb(lm):
    """Give every adapter a value, as training would: B starts at zero."""
    for name, parameter in lm.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)


@settings(max_examples=30, deadline=None)
@given(
    rank=st.integers(1, 4),
    alpha=st.floats(0.5, 8),
    targets=st.sets(st.sampled_from(PROJECTIONS), min_size=1),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_merged_weights_do_what_the_adapters_do(rank, alpha, targets, bias, seed):
    """In a model that knows nothing of adapters, layer by layer, also where a layer has a bias."""
    torch.manual_seed(seed)
    adapted, plain = plain_llama(attention_bias=bias), plain_llama(attention_bias=bias)
    lora = Lora(rank, alpha, tuple(sorted(targets)))
    inject(adapted, lora)
    perturb(adapted)
    plain.load_state_dict(merged(adapted.state_dict(), lora), strict=True)
    layers = [name for name, _ in plain.named_modules() if name.rpartition(".")[2] in targets]
    assert len(layers) == 2 * len(targets)
    with torch.no_grad():
        for name in layers:
            layer = adapted.get_submodule(name)
            x = torch.randn(3, layer.in_features)
            assert torch.allclose(plain.get_submodule(name)(x), layer(x), rtol=1e-4, atol=1e-5), name
            assert not torch.allclose(layer.base_layer(x), layer(x), rtol=1e-2, atol=1e-3), name


def test_merging_is_computed_in_fp32_and_rounded_once():
    torch.manual_seed(0)
    base, a, b = torch.randn(64, 48), torch.randn(4, 48), torch.randn(64, 4)
    base, a, b = (t.to(torch.bfloat16) for t in (base, a, b))
    names = ("base_layer.weight", "lora_A.default.weight", "lora_B.default.weight")
    state = {f"up_proj.{name}": tensor for name, tensor in zip(names, (base, a, b), strict=True)}
    exact = base.double() + 0.5 * b.double() @ a.double()
    (weight,) = merged(state, Lora(4, 2.0)).values()
    assert weight.dtype == torch.bfloat16
    assert torch.equal(weight, exact.float().to(torch.bfloat16))


def test_a_new_adapter_changes_nothing_and_only_adapters_can_be_trained():
    torch.manual_seed(0)
    lm = plain_llama(tie_word_embeddings=False)
    ids = torch.randint(0, 31, (1, 5))
    before = lm(ids).logits
    inject(lm, Lora(2, 4.0))
    assert torch.equal(lm(ids).logits, before)
    trained = {name for name, parameter in lm.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * len(PROJECTIONS) * 2
    assert all("lora_A" in name or "lora_B" in name for name in trained)


def test_modules_to_train_stay_trained_beside_the_adapters():
    lm = plain_llama(tie_word_embeddings=False)
    inject(lm, Lora(1, 1.0, ("q_proj",)), trained=[lm.lm_head])
    trained = {name for name, parameter in lm.named_parameters() if parameter.requires_grad and "lora_" not in name}
    assert trained == {"lm_head.weight"}


def test_targets_that_the_model_lacks_are_named():
    lm = plain_llama()
    with pytest.raises(ValueError, match=r"no linear layer c_attn, lm_head; use some of .*q_proj"):
        inject(lm, Lora(1, 1.0, ("q_proj", "c_attn", "lm_head")))
    assert not any("lora_" in name for name, _ in lm.named_parameters())
    assert all(parameter.requires_grad for parameter in lm.parameters())
