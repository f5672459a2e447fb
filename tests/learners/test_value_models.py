"""Checkpoints of value models: calibrated in place, and still plain directories."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForTokenClassification

from learners.models import calibrate_head


def config():
    return LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_labels=1,
    )


def test_a_calibrated_checkpoint_says_what_the_calibration_makes_of_its_logits(tmp_path):
    torch.manual_seed(0)
    model = LlamaForTokenClassification(config()).eval()
    torch.nn.init.constant_(model.score.bias, 0.25)
    model.save_pretrained(tmp_path)
    ids = torch.tensor([[1, 5, 9, 2]])
    with torch.no_grad():
        before = model(ids).logits
        calibrate_head(tmp_path, 0.5, -1.0)
        after = LlamaForTokenClassification.from_pretrained(tmp_path, dtype=torch.float32).eval()(ids).logits
    assert torch.allclose(after, 0.5 * before - 1.0, atol=1e-6)
    assert not list(tmp_path.glob("*.partial"))


def test_what_is_no_value_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^checkpoint: .* holds no head of a value model; use "):
        calibrate_head(tmp_path, 1.0, 0.0)
    LlamaForCausalLM(config()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds no head"):
        calibrate_head(tmp_path, 1.0, 0.0)
