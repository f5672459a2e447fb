"""Low-rank adapters: put into a model for training, folded back into plain weights after; only this module knows peft.

Source: Hu et al. 2021, LoRA. A linear layer W (out, in) becomes y = W x + (alpha / rank) B A x with A (rank, in) and
B (out, rank). W is frozen; B starts at zero, so training starts from the very weights of the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of a Llama or Qwen block."""
_NAME = "default"
_BASE, _A, _B = ".base_layer.", f".lora_A.{_NAME}.weight", f".lora_B.{_NAME}.weight"


@dataclass(frozen=True, slots=True)
class Lora:
    """Train adapters of `rank`, scaled by `alpha` / `rank`, beside the linear layers called `targets`; no dropout.

    Raises ValueError, naming the field, for values that make no adapter.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] = PROJECTIONS

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 1:
            raise ValueError(f"lora.rank: got {self.rank!r}; use a whole number from 1 on, such as 16")
        if not (isinstance(self.alpha, int | float) and self.alpha > 0 and math.isfinite(self.alpha)):
            raise ValueError(f"lora.alpha: got {self.alpha!r}; use a number above 0, such as 32")
        names = isinstance(self.targets, tuple) and all(isinstance(t, str) and t for t in self.targets)
        if not names or not self.targets or len(set(self.targets)) < len(self.targets):
            legal = "a tuple of different names of linear layers, such as ('q_proj', 'v_proj')"
            raise ValueError(f"lora.targets: got {self.targets!r}; use {legal}")

    @property
    def scaling(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / self.rank


def inject(lm: nn.Module, lora: Lora, trained: Sequence[nn.Module] = ()) -> None:
    """Freeze `lm`, except for the modules `trained`, and put adapters into its blocks, in place.

    Only linear layers below `lm.base_model` are candidates: the output head may share its weight with the embedding,
    where an adapter of the one cannot be folded in without changing the other.

    Raises ValueError where the model has no linear layer of a target's name.
    """
    from peft import LoraConfig, inject_adapter_in_model

    blocks = lm.base_model
    linear = {name.rpartition(".")[2] for name, module in blocks.named_modules() if isinstance(module, nn.Linear)}
    absent = [target for target in lora.targets if target not in linear]
    if absent:
        legal = f"some of {', '.join(sorted(linear))}"
        raise ValueError(f"lora.targets: the model has no linear layer {', '.join(absent)}; use {legal}")
    lm.requires_grad_(False)
    for module in trained:
        module.requires_grad_(True)
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules=list(lora.targets))
    inject_adapter_in_model(config, blocks, _NAME)


def merged(state: Mapping[str, Tensor], lora: Lora) -> dict[str, Tensor]:
    """The plain weights under their plain names: W + scaling * B A, computed in fp32, in W's dtype.

    `state`: all weights of a model after `inject`. Tensors without an adapter are passed on, not copied.
    """
    plain: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith((_A, _B)):
            continue
        layer, adapted, leaf = name.partition(_BASE)
        if adapted and leaf == "weight":
            change = state[layer + _B].to(torch.float32) @ state[layer + _A].to(torch.float32)
            tensor = (tensor.to(torch.float32) + lora.scaling * change).to(tensor.dtype)
        plain[f"{layer}.{leaf}" if adapted else name] = tensor
    return plain
