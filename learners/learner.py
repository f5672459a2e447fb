"""The narrow interface between objectives and DeepSpeed: the only module that knows DeepSpeed.

A `Learner` is one rank. Every public method is a collective: all ranks call it with their shard, in the same order and
with the same number of micro-batches.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from learners.adapters import Lora, merged
from learners.memory import BUCKET_ELEMENTS, LEAST_STAGE, STEP_ELEMENTS, STEP_PARTS, Offload
from learners.models import ModelKind, load, save_pretrained
from reasoning.durable import sync

COLLECTIVE_DEADLINE_S = 300.0
SNAPSHOT = "engine"


class LearnerError(RuntimeError):
    """Training cannot go on: a loss that is not a number, a rank that is gone.

    `items`: what the optimizer step was made of, where it is known.
    """

    items: Sequence[Any] = ()


@dataclass(frozen=True, slots=True)
class LearnerSpec:
    """What to train and how. `zero_stage`: 0-3. `learning_rate` is reached after `warmup_steps` and then constant.

    `prior`: what a new value head says of every step, in (0, 1). `lora`: train adapters only (and the head of a value
    model; None: all weights. `recompute`: activations are made again for the backward pass instead of kept. `offload`:
    what stays in host memory and is fetched when it is needed (ZeRO-Offload): nothing, the optimizer's states (stages 1
    to 3), or the weights too (stage 3).
    """

    model: str
    kind: ModelKind
    learning_rate: float
    zero_stage: int = 2
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    warmup_steps: int = 2
    dtype: str = "bfloat16"
    prior: float = 0.5
    lora: Lora | None = None
    recompute: bool = False
    offload: Offload = "none"

    def __post_init__(self) -> None:
        if not 0 < self.prior < 1:
            raise ValueError(f"prior: got {self.prior}; use a probability in (0, 1)")
        if self.zero_stage < LEAST_STAGE[self.offload]:
            least = LEAST_STAGE[self.offload]
            raise ValueError(f"zero_stage: got {self.zero_stage}; use {least} or more with offload={self.offload}")


@dataclass(slots=True)
class StepResult:
    """`loss`: sum over ranks and micro-batches divided by the global count; `seconds` of this rank; `sums`: added up
    over ranks."""

    loss: float
    count: float
    grad_norm: float
    seconds: float
    sums: dict[str, float] = field(default_factory=dict)


def _free_store(host: str, world: int, port: int | None) -> dist.TCPStore:
    """The rendezvous store; rank 0 lets the system choose a free port, so that no two groups race for one."""
    timeout = timedelta(seconds=COLLECTIVE_DEADLINE_S)
    if port is None:
        return dist.TCPStore(host, 0, world, is_master=True, wait_for_workers=False, timeout=timeout)
    return dist.TCPStore(host, port, world, is_master=False, timeout=timeout)


def _parameter_groups(module: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """What is trained, for the optimizer: matrices and the rest, in parts. DeepSpeed steps one part after the other,
    and what it takes for one while it does (`memory.STEP_BYTES` of a parameter) is free again for the next."""
    trained = [p for p in module.parameters() if p.requires_grad]
    most = max(STEP_ELEMENTS, sum(_elements(p) for p in trained) // STEP_PARTS)
    groups: list[dict[str, Any]] = []
    for decay, some in ((weight_decay, [p for p in trained if p.ndim > 1]), (0.0, [p for p in trained if p.ndim <= 1])):
        room = 0
        for p in some:
            if room < _elements(p) or not groups or groups[-1]["weight_decay"] != decay:
                groups.append({"params": [], "weight_decay": decay})
                room = most
            groups[-1]["params"].append(p)
            room -= _elements(p)
    return groups


def _give_back() -> None:
    """Memory that is free but not the system's: the allocator keeps what was once needed, and others need it more."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # a C library without it
        ctypes.CDLL(None).malloc_trim(0)


def _elements(parameter: Any) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))  # under ZeRO-3 a part is here


class Learner:
    """One DeepSpeed rank. Create on every rank, `rendezvous` on rank 0 first, then `join` on all, then `load`."""

    def __init__(self, rank: int, world: int, threads: int) -> None:
        self.rank, self.world = rank, world
        self.spec: LearnerSpec | None = None
        self._engine: Any = None
        self._store: dist.TCPStore | None = None
        self._steps = 0
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.device.type == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"
            torch.set_num_threads(threads)

    # --- group ---

    def rendezvous(self, host: str) -> int:
        """Rank 0: open the store; returns its port."""
        self._store = _free_store(host, self.world, None)
        return self._store.port

    def join(self, host: str, port: int) -> None:
        """Form the process group: ours, since DeepSpeed's own passes a device id after which NCCL weight sync hangs."""
        os.environ.update(RANK=str(self.rank), WORLD_SIZE=str(self.world), LOCAL_RANK=os.environ.get("LOCAL_RANK", "0"))
        store = self._store or _free_store(host, self.world, port)
        backend = "nccl" if self.device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend,
            store=store,
            rank=self.rank,
            world_size=self.world,
            timeout=timedelta(seconds=COLLECTIVE_DEADLINE_S),
        )

    def device_memory(self) -> int | None:
        """Bytes that are free on this rank's GPU; None without one."""
        return int(torch.cuda.mem_get_info()[0]) if self.device.type == "cuda" else None

    # --- life of a model ---

    def load(self, spec: LearnerSpec, seed: int) -> None:
        """Replace the trained model by the one of `spec`, with a fresh optimizer."""
        self.release()
        import deepspeed

        # DeepSpeed would compile a shared-memory collective on first use, which needs a compiler, Python's headers and
        # a writable home; gloo does without.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        torch.manual_seed(seed)
        module = load(Path(spec.model), spec.kind, getattr(torch, spec.dtype), spec.prior, spec.lora)
        module.train()
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = tensor.data.clone()  # the file that it is mapped from would stay in memory as a whole
        if spec.recompute:
            module.lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        optimizer = torch.optim.AdamW(
            _parameter_groups(module, spec.weight_decay), lr=spec.learning_rate, betas=(0.9, 0.95), fused=True
        )
        self._engine, *_ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=self._config(spec), dist_init_required=False
        )
        self.spec, self._steps = spec, 0
        _give_back()

    def _config(self, spec: LearnerSpec) -> dict[str, Any]:
        away = {"device": "cpu", "pin_memory": self.device.type == "cuda"}
        offload = {"offload_optimizer": away} if spec.offload != "none" else {}
        if spec.offload == "weights":
            offload["offload_param"] = away
        return {
            # Micro-batches vary in size; accumulation boundaries are set by hand in `step`.
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": spec.clip_norm,
            "bf16": {"enabled": spec.dtype == "bfloat16"},
            "zero_optimization": {
                "stage": spec.zero_stage,
                "overlap_comm": False,
                "contiguous_gradients": True,
                # DeepSpeed allocates a gradient bucket of this many elements at once, 1 GB by default.
                "reduce_bucket_size": BUCKET_ELEMENTS,
                "allgather_bucket_size": BUCKET_ELEMENTS,
                "sub_group_size": BUCKET_ELEMENTS,
                "stage3_gather_16bit_weights_on_model_save": True,
                **offload,
            },
            # DeepSpeed's own CPU optimizer is compiled on first use; torch's fused one needs no compiler.
            "zero_force_ds_cpu_optimizer": False,
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 10**9,
            "wall_clock_breakdown": False,
        }

    def release(self) -> None:
        """Drop the model and its optimizer."""
        if self._engine is not None:
            self._engine.destroy()
            self._engine = None
        self.spec = None
        _give_back()

    @property
    def model(self) -> Any:
        """The wrapped module; calling it is a forward pass (a collective under ZeRO-3)."""
        if self._engine is None:
            raise LearnerError("no model is loaded")
        return self._engine

    @property
    def vocabulary(self) -> int:
        """Tokens that the model knows."""
        return int(self.model.module.lm.get_input_embeddings().num_embeddings)

    # --- training ---

    def step(
        self,
        micro_batches: Sequence[Any],
        loss_of: Callable[[Any, Any], tuple[Tensor, dict[str, Tensor | float]]],
        count: float,
    ) -> StepResult:
        """One optimizer step over this rank's micro-batches (the same number on every rank).

        `loss_of(model, micro_batch)` returns a *sum* over what counts and further sums to report. `count`: how much
        counts on this rank; the loss is divided by the sum of counts over all ranks.

        Raises LearnerError where the loss is not finite.
        """
        started = time.monotonic()
        total = self.all_sum({"count": float(count)})["count"]
        scale = self.world / max(total, 1e-9)  # DeepSpeed averages gradients over ranks
        rate = self.spec.learning_rate * min(1.0, (self._steps + 1) / max(1, self.spec.warmup_steps))
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate
        sums: dict[str, float] = {"loss": 0.0}
        for i, batch in enumerate(micro_batches):
            self._engine.set_gradient_accumulation_boundary(i == len(micro_batches) - 1)
            loss, extra = loss_of(self._engine, batch)
            if not torch.isfinite(loss):
                raise LearnerError(f"loss is {loss.item()} in optimizer step {self._steps + 1}, micro-batch {i + 1}")
            self._engine.backward(loss * scale)
            self._engine.step()
            sums["loss"] += loss.item()
            for name, value in extra.items():
                sums[name] = sums.get(name, 0.0) + float(value)
        self._steps += 1
        sums = self.all_sum(sums)
        norm = self._engine.get_global_grad_norm()
        return StepResult(
            loss=sums.pop("loss") / max(total, 1e-9),
            count=total,
            grad_norm=float(norm) if norm is not None else 0.0,
            seconds=time.monotonic() - started,
            sums=sums,
        )

    def all_sum(self, values: dict[str, float]) -> dict[str, float]:
        """Sums over ranks; keys must be the same on every rank."""
        names = sorted(values)
        return dict(zip(names, self.all_sum_list([values[n] for n in names]), strict=True))

    def all_sum_list(self, values: list[float]) -> list[float]:
        """Element-wise sums over ranks, the same on every rank; all lists have the same length."""
        if self.world == 1 or not values:
            return values
        packed = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(packed)
        return packed.tolist()

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world > 1:
            dist.barrier()

    # --- interrupted training ---

    def save(self, folder: Path) -> None:
        """Write weights, optimizer and random numbers into a directory that all ranks share; `restore` reads it.

        Each rank makes durable what it wrote itself. Raises OSError.
        """
        self._engine.save_checkpoint(str(folder), tag=SNAPSHOT, save_latest=False)
        random = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state()
        own = folder / f"random-{self.rank}.pt"
        torch.save(random, own)
        sync(own)
        for file in (folder / SNAPSHOT).iterdir():
            # What DeepSpeed names after no data-parallel rank is written by the first.
            writer = re.search(r"pp_rank_(\d+)_", file.name)
            if int(writer[1] if writer else 0) == self.rank:
                sync(file)

    @property
    def snapshot_bytes(self) -> int:
        """What `save` writes, of all ranks: the weights, and of those that are trained fp32 copies and two moments."""
        size = 2 if self.spec.dtype == "bfloat16" else 4
        count = {True: 0, False: 0}
        for p in self._engine.module.parameters():
            count[p.requires_grad] += _elements(p)
        return size * count[False] + (size + 12) * count[True]

    def restore(self, folder: Path, steps: int) -> None:
        """All as it was when the directory was written, after `steps` optimizer steps. The same specification must be
        loaded, in a group of as many ranks.

        Raises LearnerError where the directory holds nothing of the kind.
        """
        try:
            loaded, _ = self._engine.load_checkpoint(str(folder), tag=SNAPSHOT)
            random = torch.load(folder / f"random-{self.rank}.pt", map_location="cpu", weights_only=True)
            if loaded is None:
                raise FileNotFoundError(folder)
        except Exception as error:  # files that are missing, torn, or of another DeepSpeed
            raise LearnerError(f"snapshot: {folder} cannot be read; delete it to begin this training anew") from error
        torch.set_rng_state(random["cpu"])
        if "cuda" in random:
            torch.cuda.set_rng_state(random["cuda"])
        self._steps = steps

    def own_weights(self) -> dict[str, Tensor] | None:
        """The model's weights as this rank has them, no collective; None under ZeRO-3, where it has a part."""
        if self.spec.zero_stage == 3:
            return None
        return {name: t.detach().to("cpu", copy=True) for name, t in self._engine.module.state_dict().items()}

    def take_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Put weights of `own_weights` into the loaded model, for a step that is looked into: the optimizer's copies
        stay as they are."""
        self._engine.module.load_state_dict(weights)

    # --- out ---

    def state(self) -> dict[str, Tensor]:
        """The full weights on rank 0 in the training dtype, empty elsewhere; names of the inner Hugging Face model;
        adapters are folded in.

        Gathers the whole model on rank 0's host memory under ZeRO-3.
        """
        if self.spec.zero_stage == 3:
            full = self._engine._zero3_consolidated_16bit_state_dict()
        else:
            full = self._engine.module.state_dict()
        if self.rank != 0 or full is None:
            return {}
        if self.spec.lora is not None:
            full = merged(full, self.spec.lora)
        dtype = getattr(torch, self.spec.dtype)
        return {name.removeprefix("lm."): t.detach().to("cpu", dtype).contiguous() for name, t in full.items()}

    def export(self, target: Path) -> None:
        """Write the model in Hugging Face format into the existing directory `target` (rank 0 writes)."""
        state = self.state()
        if self.rank == 0:
            save_pretrained(self._engine.module, state, Path(self.spec.model), target)

    def publish(self, file: Path) -> None:
        """Write the weights as one safetensors file for the samplers (rank 0 writes); tied weights appear once."""
        state = self.state()
        if self.rank == 0:
            tied = getattr(self._engine.module.lm.config, "tie_word_embeddings", False)
            kept = {n: t for n, t in state.items() if not (tied and n == "lm_head.weight")}
            scratch = file.with_suffix(".partial")
            save_file(kept, scratch)
            scratch.rename(file)

    def close(self) -> None:
        """Leave the process group."""
        self.release()
        if dist.is_initialized():
            dist.destroy_process_group()
