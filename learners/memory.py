"""What one learner rank will need, known before it starts.

Model states after Rajbhandari et al. 2020 (ZeRO, section 3), activations by what a Llama block of `transformers` keeps
for its backward pass (as Korthikanti et al. 2023, section 4, count them). Imports without torch.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Offload = Literal["none", "optimizer", "weights"]
LEAST_STAGE: dict[Offload, int] = {"none": 0, "optimizer": 1, "weights": 3}
"""The ZeRO stage from which on something can be kept in host memory."""
BUCKET_ELEMENTS = 50_000_000
"""Of a gradient bucket; larger ones only pay off over a network."""
HEAD_ROWS = 256
"""Positions whose logits are in memory together."""
HEAD_COPIES = 4
"""Of these logits, in fp32, with their gradients."""
ADAM_BYTES = 12
"""Of a trained parameter: its fp32 copy and two moments."""
STEP_ELEMENTS, STEP_PARTS = 20_000_000, 16
"""The optimizer steps for that many parameters at a time, or for that part of all, whichever is more."""
STEP_BYTES = 8
"""And what the optimizer takes for it while it steps: its gradient in fp32, and copies."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a causal language model: parameters in all, width and number of its blocks, of its feed-forward part, of all
    keys of a position, and the vocabulary."""

    parameters: int
    layers: int
    hidden: int
    feed_forward: int
    keys: int
    vocabulary: int


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes of one rank: on the device where it computes, and in host memory besides. `states`: weights, gradients and
    optimizer; `work`: activations, or what the optimizer takes while it steps, whichever is more."""

    states: int
    work: int
    host: int

    @property
    def device(self) -> int:
        """All that is on the device."""
        return self.states + self.work


def shape_of(model: Path) -> Shape:
    """The shape of a model directory. Raises OSError where files are missing, ValueError where they say nothing."""
    try:
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        config = config.get("text_config", config)
        heads = int(config["num_attention_heads"])
        hidden = int(config["hidden_size"])
        head = int(config.get("head_dim") or hidden // heads)
        return Shape(
            parameters=sum(_elements(file) for file in model.glob("*.safetensors")),
            layers=int(config["num_hidden_layers"]),
            hidden=hidden,
            feed_forward=int(config.get("intermediate_size") or 4 * hidden),
            keys=head * int(config.get("num_key_value_heads") or heads),
            vocabulary=int(config["vocab_size"]),
        )
    except (AttributeError, KeyError, TypeError, ValueError, struct.error) as error:
        raise ValueError(f"{model}: its shape cannot be read: {type(error).__name__}: {error}") from error


def adapter_parameters(shape: Shape, rank: int) -> int:
    """Of adapters on all seven projections of every block: two matrices for each, rank by its inputs and outputs."""
    attention = 2 * 2 * shape.hidden + 2 * (shape.hidden + shape.keys)
    return shape.layers * rank * (attention + 3 * (shape.hidden + shape.feed_forward))


def _elements(file: Path) -> int:
    """Of all tensors of a safetensors file: its header holds their shapes."""
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        header = json.loads(opened.read(length))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def need(
    shape: Shape,
    *,
    ranks: int = 1,
    zero_stage: int = 2,
    micro_tokens: int = 1024,
    trained: int | None = None,
    half: bool = True,
    recompute: bool = False,
    offload: Offload = "none",
) -> Need:
    """Of one of `ranks` ranks. `trained`: parameters that are trained, None for all; `half`: bf16, else fp32;
    `micro_tokens`: tokens of a micro-batch, padding included. For what else see `LearnerSpec`."""
    size, trained = (2 if half else 4), shape.parameters if trained is None else trained
    parts = ranks if zero_stage >= 1 else 1
    weights = size * shape.parameters // (ranks if zero_stage == 3 else 1)
    gradients = size * trained // (ranks if zero_stage >= 2 else 1)
    optimizer = ADAM_BYTES * trained // parts
    buckets = 2 * size * min(BUCKET_ELEMENTS, trained)
    gathered = size * _largest(shape) if zero_stage == 3 else 0
    together = max(STEP_ELEMENTS, trained // STEP_PARTS, shape.vocabulary * shape.hidden)
    stepping = STEP_BYTES * min(together, trained) // parts
    logits = HEAD_COPIES * 4 * min(HEAD_ROWS, micro_tokens) * shape.vocabulary
    activations = micro_tokens * _token_bytes(shape, size, recompute) + logits + gathered
    host = 0
    if offload != "none":
        host += optimizer + stepping + gradients
        optimizer = stepping = 0
        gradients = gradients if zero_stage < 2 else 0
    if offload == "weights":
        host += weights
        weights = 0
    return Need(weights + gradients + optimizer + buckets, max(activations, stepping), host)


def _token_bytes(shape: Shape, size: int, recompute: bool) -> int:
    """What is kept of a token for the backward pass: of every block its two norms (in fp32 and as they came out), the
    inputs of its projections, queries, keys and values before and after their rotation, and four tensors of the
    feed-forward part; with `recompute` the input of every block, and the rest of one of them."""
    block = 2 * (4 + size) * shape.hidden + size * (8 * shape.hidden + 6 * shape.keys + 4 * shape.feed_forward)
    return block + shape.layers * size * shape.hidden if recompute else shape.layers * block


def _largest(shape: Shape) -> int:
    """Elements of the largest module that ZeRO-3 gathers at once, about: the embeddings, or a few blocks."""
    return max(shape.vocabulary * shape.hidden, shape.parameters // max(1, shape.layers))
