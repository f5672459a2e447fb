"""What a rank is said to need, against the arithmetic of ZeRO and against what a real one takes."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_learning import write_tiny_llama

from learners.adapters import Lora, inject
from learners.memory import Shape, adapter_parameters, need, shape_of

BILLION = Shape(10**9, 24, 2048, 5504, 2048, 32000)
GB = 10**9
BUCKETS = 2 * 2 * 50_000_000


def test_the_shape_of_a_directory(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    write_tiny_llama(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert shape_of(tmp_path) == Shape(sum(p.numel() for p in model.parameters()), 2, 32, 64, 16, 97)


def test_adapters_are_counted_as_they_are_made(tmp_path):
    from transformers import AutoModelForCausalLM

    write_tiny_llama(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    inject(model, Lora(3, 1.0))
    made = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert adapter_parameters(shape_of(tmp_path), 3) == made


@pytest.mark.parametrize("config", ["{", "[]", "{}", '{"num_attention_heads": "many"}'])
def test_a_shape_that_cannot_be_read(tmp_path, config):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match="its shape cannot be read"):
        shape_of(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(OSError):
        shape_of(tmp_path)


def test_model_states_are_those_of_zero():
    states = [need(BILLION, ranks=4, zero_stage=stage).states - BUCKETS for stage in range(4)]
    assert states == [16 * GB, 7 * GB, 5.5 * GB, 4 * GB]
    adapters = need(BILLION, zero_stage=2, trained=10**7)
    assert adapters.states == 2 * GB + (2 + 12) * 10**7 + 2 * 2 * 10**7


def test_what_is_kept_in_host_memory_leaves_the_device():
    plain, half, away = (need(BILLION, zero_stage=3, offload=what) for what in ("none", "optimizer", "weights"))
    assert plain.host == 0 and away.device < half.device < plain.device
    assert away.host == plain.states - BUCKETS + 8 * 32000 * 2048  # the optimizer steps there, for a part at a time
    assert away.host - half.host == 2 * GB


@given(st.integers(0, 3), st.integers(1, 64), st.integers(64, 10**6), st.booleans(), st.booleans())
def test_more_tokens_need_more_and_more_ranks_no_more(stage, ranks, tokens, half, recompute):
    def device(**changes):
        given = {"zero_stage": stage, "ranks": ranks, "micro_tokens": tokens, "half": half, "recompute": recompute}
        return need(BILLION, **{**given, **changes}).device

    assert device(micro_tokens=2 * tokens) >= device() >= device(ranks=ranks + 1)
    assert device(half=False) >= device(half=True)
    if tokens > 10**5:
        assert device(recompute=True) < device(recompute=False)


MEASURED = """
import json, os, resource, sys
from pathlib import Path
import psutil, torch
from learners import training
from learners.batches import Example
from learners.learner import Learner, LearnerSpec
from learners.loop import FitSettings
from learners.memory import need, shape_of

folder, zero, tokens, recompute = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "True"
learner = Learner(0, 1, 1)
learner.join("127.0.0.1", learner.rendezvous("127.0.0.1"))
import deepspeed
before = psutil.Process().memory_info().rss
learner.load(LearnerSpec(str(folder), "policy", 1e-6, zero_stage=zero, recompute=recompute), 0)
ids = (torch.arange(256) % 1000).tolist()
# Each begins with a token of its own: what is shared is computed once.
items = [Example((n + 1, *ids[1:]), (0,) * 100 + (1,) * 156, str(n)) for n in range(tokens // 256)]
settings = FitSettings(batch_size=len(items), epochs=1, micro_tokens=tokens, row_tokens=256, packing="packed")
training.sft(learner, items, settings, report=lambda row: None)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
said = need(shape_of(folder), zero_stage=zero, micro_tokens=tokens, recompute=recompute)
print("\\n" + json.dumps([peak - before, said.device]), flush=True)
os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("zero", "tokens", "recompute"), [(2, 256, False), (2, 4096, False), (2, 4096, True), (3, 1024, False)]
)
def test_a_real_rank_takes_what_was_said(tmp_path, zero, tokens, recompute):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=8000, hidden_size=512, intermediate_size=1536, num_hidden_layers=12, num_attention_heads=8,
        num_key_value_heads=4, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    ran = subprocess.run(
        [sys.executable, "-c", MEASURED, str(tmp_path), str(zero), str(tokens), str(recompute)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]
    taken, said = json.loads(ran.stdout.strip().splitlines()[-1])
    assert 0.7 < said / taken < 1.5, (said / 1e9, taken / 1e9)
