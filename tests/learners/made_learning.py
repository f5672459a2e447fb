"""A tiny model, and sequences to teach it."""

import torch

from learners.batches import Example
from learners.learner import LearnerSpec
from learners.loop import FitSettings

LEARNING_RATE = 1e-3
VOCABULARY = 97


def write_tiny_llama(path):
    """A small Llama with random weights, in fp32 so that runs can be compared."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    (path / "tokenizer_config.json").write_text("{}")


def examples(count=8, seed=1):
    """Random tokens; the second half of each sequence is to be learnt."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i in range(count):
        n = 6 + 3 * i
        ids = torch.randint(1, VOCABULARY, (n,), generator=generator).tolist()
        made.append(Example(tuple(ids), tuple([0] * (n // 2) + [1] * (n - n // 2)), f"p{i % 3}"))
    return made


def spec(model, kind="policy", zero=2, dtype="float32", rate=LEARNING_RATE, **options):
    return LearnerSpec(str(model), kind, rate, zero_stage=zero, warmup_steps=1, dtype=dtype, **options)


def settings(**overrides):
    return FitSettings(**{"batch_size": 8, "epochs": 3, "micro_tokens": 40, **overrides})
