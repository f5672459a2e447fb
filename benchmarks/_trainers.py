"""One trainer in a process of its own, ours or TRL's, that takes an optimizer step whenever it is told to.

`python -m benchmarks._trainers JOB.json`: the job says which trainer, what it trains and how. It writes one JSON object
a line on descriptor 3, `{"ready": true}` when it could begin and then one for each line that it reads from standard
input: seconds, loss and the largest memory so far. All steps take the same items, so that only the weights change.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Job = dict[str, Any]
"""`side`: ours or trl. `task`: sft, dpo or grpo. `model`: a directory. `dtype`: of weights and of what is computed.
`items`: token ids, as `prompt` and `completion` (sft; grpo with `advantage` too) or `prompt`, `chosen` and `rejected`.
`steps`, `rate`: how many, and the learning rate. `options`: of the trainer."""


class Line:
    """The line to the process that tells when."""

    def __init__(self) -> None:
        self._out = os.fdopen(3, "w")

    def say(self, **what: Any) -> None:
        print(json.dumps(what), file=self._out, flush=True)

    def wait(self) -> None:
        """Until the next step is wanted; ends the process where none will be."""
        if not sys.stdin.readline():
            os._exit(0)

    def done(self, began: float, loss: float) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        self.say(seconds=time.monotonic() - began, loss=loss, peak_mb=round(peak))


# --- ours ---


def ours(job: Job, line: Line) -> None:
    """A DeepSpeed rank, as `o1coder` runs it; with several ranks this one is rank 0 and starts the others."""
    import torch

    from learners import training
    from learners.learner import Learner, LearnerSpec
    from learners.loop import FitSettings

    options = dict(job["options"])
    rank, world, threads = (options.pop(n, v) for n, v in (("rank", 0), ("world", 1), ("threads", os.cpu_count() or 1)))
    port = options.pop("port", None)
    learner = Learner(rank, world, threads)
    if rank == 0:
        port = learner.rendezvous("127.0.0.1")
        line.say(port=port)
    learner.join("127.0.0.1", port)
    spec = LearnerSpec(job["model"], "policy", job["rate"], zero_stage=2, warmup_steps=1, dtype=job["dtype"])
    learner.load(spec, 0)
    torch.set_num_threads(threads)
    items = [_item(job["task"], item) for item in job["items"]]
    settings = FitSettings(batch_size=len(items), epochs=job["steps"], **options)
    more: dict[str, Any] = {"sft": {}, "dpo": {"beta": 0.1}, "grpo": {"clip": 0.2, "truncation": 2.0}}[job["task"]]
    began = [0.0]

    def report(row: dict[str, float]) -> None:
        name = next(iter(row)).partition("/")[0]
        line.done(began[0], row[f"{name}/loss"])
        line.wait()
        began[0] = time.monotonic()

    if job["task"] == "dpo":
        items = training._with_references(learner, items, settings)
    line.say(ready=True)
    line.wait()
    began[0] = time.monotonic()
    name = {"grpo": "rl"}.get(job["task"], job["task"])
    getattr(training, name)(learner, items, settings, report=report, **more)


def _item(task: str, item: dict[str, Any]) -> Any:
    from learners.batches import Example, PreferenceExample
    from reasoning.records import Trajectory

    start = item["prompt"]

    def example(ids: Sequence[int]) -> Example:
        return Example((*start, *ids), (*[0] * len(start), *[1] * len(ids)))

    if task == "sft":
        return example(item["completion"])
    if task == "dpo":
        return PreferenceExample(example(item["chosen"]), example(item["rejected"]))
    made = example(item["completion"])
    sampled = tuple(float(m) for m in made.loss_mask)
    return Trajectory(
        problem_id="p",
        token_ids=made.token_ids,
        loss_mask=made.loss_mask,
        logprobs=tuple(-m for m in sampled),
        advantages=tuple(item["advantage"] * m for m in sampled),
        outcome=0.0,
    )


# --- TRL ---


def trl(job: Job, line: Line) -> None:
    """TRL's trainer with its own defaults but for what would make the work another: no checkpointing of activations (it
    would take longer for less memory), the same optimizer, the items in one optimizer step. `options`: `micro`
    (sequences or pairs of a micro-batch), `packing`, `mixed` (fp32 weights, bf16 autocast)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    options = job["options"]
    torch.set_num_threads(options.get("threads", os.cpu_count() or 1))
    mixed = bool(options.get("mixed"))
    dtype = torch.float32 if mixed else getattr(torch, job["dtype"])
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype, attn_implementation="sdpa")
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    micro = options.get("micro", 8)
    arguments = {
        "output_dir": str(Path(job["scratch"]) / "trl"), "use_cpu": not torch.cuda.is_available(), "report_to": [],
        "save_strategy": "no", "logging_strategy": "steps", "logging_steps": 1, "disable_tqdm": True,
        "gradient_checkpointing": False, "bf16": mixed, "max_steps": job["steps"], "learning_rate": job["rate"],
        "lr_scheduler_type": "constant", "warmup_steps": 0, "weight_decay": 0.0, "adam_beta1": 0.9, "adam_beta2": 0.95,
        "max_grad_norm": 1.0, "per_device_train_batch_size": micro, "seed": 0,
        "gradient_accumulation_steps": -(-len(job["items"]) // micro),
    }  # fmt: skip

    class Told(TrainerCallback):
        began = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            line.say(ready=True)

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            line.wait()
            Told.began = time.monotonic()

        def on_log(self, _: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **__: Any) -> None:
            if logs and "loss" in logs:
                line.done(Told.began, float(logs["loss"]))

    make = {"sft": _trl_sft, "dpo": _trl_dpo, "grpo": _trl_grpo}[job["task"]]
    trainer = make(job, model, tokenizer, arguments)
    trainer.add_callback(Told())
    trainer.train()


def _trl_sft(job: Job, model: Any, tokenizer: Any, arguments: dict[str, Any]) -> Any:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = [
        {"input_ids": i["prompt"] + i["completion"], "labels": [-100] * len(i["prompt"]) + i["completion"]}
        for i in job["items"]
    ]
    if job["options"].get("packing"):
        arguments |= {"packing": True, "max_length": 1024, "per_device_train_batch_size": 1}
        arguments["gradient_accumulation_steps"] = 1
    else:
        arguments |= {"max_length": None}
    trainer = SFTTrainer(
        model, args=SFTConfig(**arguments), train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    if job["options"].get("packing"):  # all packed rows are one optimizer step, as the sequences are
        trainer.args.gradient_accumulation_steps = len(trainer.train_dataset)
    return trainer


def _trl_dpo(job: Job, model: Any, tokenizer: Any, arguments: dict[str, Any]) -> Any:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    rows = [{f"{name}_ids": item[name] for name in ("prompt", "chosen", "rejected")} for item in job["items"]]
    text = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"} for _ in rows])

    class Given(DPOTrainer):
        """Takes token ids as they are."""

        def _prepare_dataset(self, *_: Any, **__: Any) -> Any:
            return Dataset.from_list(rows)

    settings = DPOConfig(**arguments, beta=0.1, precompute_ref_log_probs=True, max_length=None)
    return Given(model, args=settings, train_dataset=text, processing_class=tokenizer)


def _trl_grpo(job: Job, model: Any, tokenizer: Any, arguments: dict[str, Any]) -> Any:
    import torch
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    items, micro = job["items"], arguments["per_device_train_batch_size"]
    pad = tokenizer.pad_token_id or 0

    def tensors(own: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """As the trainer makes them: prompts padded on the left, completions on the right."""
        long, after = max(len(i["prompt"]) for i in own), max(len(i["completion"]) for i in own)
        left = [(long - len(i["prompt"]), i["prompt"]) for i in own]
        right = [(after - len(i["completion"]), i["completion"]) for i in own]
        return {
            "prompt_ids": torch.tensor([[pad] * n + ids for n, ids in left]),
            "prompt_mask": torch.tensor([[0] * n + [1] * len(ids) for n, ids in left]),
            "completion_ids": torch.tensor([ids + [pad] * n for n, ids in right]),
            "completion_mask": torch.tensor([[1] * len(ids) + [0] * n for n, ids in right]),
            "advantages": torch.tensor([float(i["advantage"]) for i in own]),
            "num_items_in_batch": torch.tensor(sum(len(i["completion"]) for i in items)),
        }

    batches = [tensors(items[i : i + micro]) for i in range(0, len(items), micro)]
    turn = [0]

    class Given(GRPOTrainer):
        """The update alone: completions and advantages are there."""

        def _prepare_inputs(self, generation_batch: Any) -> Any:
            turn[0] += 1
            return batches[(turn[0] - 1) % len(batches)]

    settings = GRPOConfig(
        **arguments, num_generations=min(len(items), micro), beta=0.0, max_completion_length=64, loss_type="dapo"
    )
    rows = Dataset.from_list([{"prompt": "a"}] * len(items))
    return Given(model, lambda **_: [0.0], args=settings, train_dataset=rows, processing_class=tokenizer)


if __name__ == "__main__":
    told = json.loads(Path(sys.argv[1]).read_text())
    {"ours": ours, "trl": trl}[told["side"]](told, Line())
