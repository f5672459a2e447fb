"""Modules that a learner trains: a policy that returns log-probabilities, and a value model over steps."""

from __future__ import annotations

import functools
import math
import os
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForTokenClassification

from learners.adapters import Lora, inject
from learners.batches import ROUNDING
from learners.memory import HEAD_ROWS

ModelKind = Literal["policy", "value"]


class PolicyModel(nn.Module):
    """A causal language model that returns log-probabilities of chosen tokens only.

    The output head runs on the selected positions alone: with a 49,152-word vocabulary it is a fifth of the work.
    """

    def __init__(self, lm: nn.Module) -> None:
        super().__init__()
        self.lm = lm
        # In the head's own place: ZeRO-3 fetches its weights once for a call of it, on all ranks as often.
        lm.lm_head.forward = functools.partial(_head, lm.lm_head)

    def forward(
        self,
        token_ids: Tensor,
        attention: Tensor,
        positions: Tensor | None,
        select: Tensor,
        gather: Tensor | None,
        targets: Tensor,
        temperature: Tensor | float = 1.0,
        with_entropy: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """(N,) log-probabilities of `targets` where the output counts and, if asked, (N,) entropies in nats, in fp32.

        Shapes as in `batches.Batch`; `temperature`: scalar or (N,), that the tokens were sampled with.
        """
        hidden = self.lm.get_decoder()(
            input_ids=token_ids, attention_mask=attention, position_ids=positions, use_cache=False
        ).last_hidden_state
        return self.lm.lm_head(hidden[select], targets, gather, temperature, with_entropy)


def _head(
    head: nn.Linear,
    rows: Tensor,
    targets: Tensor,
    gather: Tensor | None,
    temperature: Tensor | float,
    with_entropy: bool,
) -> tuple[Tensor, Tensor | None]:
    """(N,) log-probabilities and entropies of `targets`, each after one of the `rows` (P, H): its own, or that of
    `gather` (N,). What is as wide as the vocabulary is there for `HEAD_ROWS` rows at a time, and is made again for the
    backward pass: the logits of a whole micro-batch take more memory than the model."""
    at = torch.arange(len(rows), device=rows.device) if gather is None else gather
    order, logprobs, entropies = [at.new_zeros(0)], [rows.float().sum(-1)[:0]], [rows.new_zeros(0, dtype=torch.float32)]
    for start in range(0, len(rows), HEAD_ROWS):
        some = rows[start : start + HEAD_ROWS]
        own = ((at >= start) & (at < start + len(some))).nonzero()[:, 0]
        warmth = temperature[own] if isinstance(temperature, Tensor) else temperature
        given = (head, some, targets[own], at[own] - start, warmth, with_entropy)
        values, entropy = checkpoint(_few, *given, use_reentrant=False) if some.requires_grad else _few(*given)
        order.append(own)
        logprobs.append(values)
        entropies.append(entropy)
    back = torch.cat(order).argsort()
    return torch.cat(logprobs)[back], torch.cat(entropies)[back] if with_entropy else None


def _few(
    head: nn.Linear, rows: Tensor, targets: Tensor, at: Tensor, temperature: Tensor | float, with_entropy: bool
) -> tuple[Tensor, Tensor]:
    """As `_head`, of rows whose logits fit into memory; the entropies are empty where they are not asked for."""
    # Rounded up, so that few sizes occur: CPU kernels keep buffers as large as the vocabulary for each size seen.
    filled = F.pad(rows, (0, 0, 0, -len(rows) % ROUNDING))
    logits = F.linear(filled, head.weight, head.bias)[: len(rows)].float()
    if isinstance(temperature, Tensor) and len(temperature) and bool((temperature == temperature[0]).all()):
        temperature = float(temperature[0])
    if isinstance(temperature, Tensor):
        logits, at = logits[at] / temperature.unsqueeze(-1).to(logits), torch.arange(len(at), device=at.device)
    elif temperature != 1.0:
        logits = logits / temperature
    logp = logits.log_softmax(-1)
    values = logp[at, targets]
    with torch.no_grad():
        return values, -(logp.exp() * logp).sum(-1)[at] if with_entropy else values.new_zeros(0)


class ValueModel(nn.Module):
    """A token-classification head on the same backbone: one logit per position (method section 4)."""

    def __init__(self, lm: nn.Module) -> None:
        super().__init__()
        self.lm = lm

    def forward(
        self, token_ids: Tensor, attention: Tensor, positions: Tensor | None, select: Tensor, gather: Tensor | None
    ) -> Tensor:
        """(N,) logits where the output counts, fp32. Shapes as in `batches.Batch`."""
        logits = self.lm(input_ids=token_ids, attention_mask=attention, position_ids=positions, use_cache=False).logits
        chosen = logits[select].squeeze(-1).float()
        return chosen if gather is None else chosen[gather]


def load(
    path: Path, kind: ModelKind, dtype: torch.dtype, prior: float = 0.5, lora: Lora | None = None
) -> PolicyModel | ValueModel:
    """The model of a Hugging Face directory. A value model from a policy's directory starts with a head that says
    `prior` everywhere: from anything else, the first steps would only move the whole model towards the mean.

    With `lora`, only adapters can be trained, and the head of a value model.
    """
    if kind == "policy":
        lm = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="sdpa")
        if lora is not None:
            inject(lm, lora)
        return PolicyModel(lm)
    config = AutoConfig.from_pretrained(path, num_labels=1)
    fresh = "TokenClassification" not in (getattr(config, "architectures", None) or [""])[0]
    lm = AutoModelForTokenClassification.from_pretrained(path, config=config, dtype=dtype, attn_implementation="sdpa")
    head = next(m for m in (getattr(lm, "score", None), getattr(lm, "classifier", None)) if m is not None)
    if fresh:
        nn.init.zeros_(head.weight)
        if head.bias is not None:
            nn.init.constant_(head.bias, math.log(prior / (1 - prior)))
    if lora is not None:
        inject(lm, lora, trained=[head])
    return ValueModel(lm)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Everything of a model directory that is not weights or config, so that a checkpoint is usable by itself."""
    for file in source.iterdir():
        skip = file.suffix in {".safetensors", ".bin", ".pt", ".gguf"} or file.name.endswith(".index.json")
        if file.is_file() and not skip and not (target / file.name).exists():
            shutil.copyfile(file, target / file.name)


def save_pretrained(model: nn.Module, state: dict[str, Any], source: Path, target: Path) -> None:
    """Write `state` (names of the inner model) in Hugging Face format with tokenizer files from `source`."""
    model.lm.save_pretrained(target, state_dict=state, safe_serialization=True)
    copy_tokenizer(source, target)


def calibrate_head(checkpoint: Path, slope: float, bias: float) -> None:
    """Have a value model's checkpoint say `slope * logit + bias` where it said `logit`: its head is linear.

    Raises ValueError where the directory holds no value model with a bias.
    """
    for file in checkpoint.glob("*.safetensors"):
        weights = load_file(file)
        heads = {name.rpartition(".")[0] for name in weights} & {"score", "classifier"}
        for head in heads:
            if f"{head}.bias" not in weights:
                raise ValueError(f"checkpoint: {checkpoint} has a head without a bias; use a value model made here")
            weights[f"{head}.weight"] = weights[f"{head}.weight"] * slope
            weights[f"{head}.bias"] = weights[f"{head}.bias"] * slope + bias
        if heads:
            scratch = file.with_suffix(".partial")
            save_file(weights, scratch, metadata={"format": "pt"})
            with scratch.open("rb") as written:
                os.fsync(written.fileno())
            scratch.rename(file)
            return
    raise ValueError(f"checkpoint: {checkpoint} holds no head of a value model; use a checkpoint such as prm-round-1")
