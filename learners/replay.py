"""A batch that broke a training, kept and run again: `python -m learners.replay FILE`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from learners import training
from learners.learner import Learner, LearnerError
from learners.loop import FitSettings, Row


def set_aside(
    folder: Path,
    learner: Learner,
    objective: str,
    settings: FitSettings,
    options: Mapping[str, float],
    items: Sequence[Any],
) -> Path:
    """Write what a failed optimizer step was made of, with the weights before it (under ZeRO-3, where no rank has them
    all, without); returns the file. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{objective}-rank-{learner.rank}.pt"
    kept = {
        "objective": objective,
        "settings": replace(settings, batch_size=max(1, len(items)), epochs=1, snapshots=""),
        "options": dict(options),
        "spec": learner.spec,
        "items": list(items),
        "weights": learner.own_weights(),
    }
    scratch = file.with_suffix(".partial")
    torch.save(kept, scratch)
    scratch.replace(file)
    return file


def replay(file: Path, threads: int = 1) -> list[Row]:
    """The step again, on one rank; returns its row of metrics. The file is unpickled: only use one of your own.

    Raises LearnerError as the training did, where the weights and the batch alone were the cause.
    """
    kept = torch.load(file, map_location="cpu", weights_only=False)
    learner = Learner(0, 1, threads)
    try:
        torch.set_default_device(learner.device)  # batches are made where the model is
        learner.join("127.0.0.1", learner.rendezvous("127.0.0.1"))
        learner.load(replace(kept["spec"], zero_stage=min(2, kept["spec"].zero_stage)), 0)
        if kept["weights"] is not None:
            learner.take_weights(kept["weights"])
        run = getattr(training, kept["objective"])
        rows: list[Row] = run(learner, kept["items"], kept["settings"], report=lambda row: None, **kept["options"])
        return rows
    finally:
        learner.close()


def main(arguments: Sequence[str]) -> int:
    """Exit code: 0 the step went well this time, 1 it failed again, 2 bad input."""
    if len(arguments) != 1 or not Path(arguments[0]).is_file():
        print(f"replay: got {' '.join(arguments) or 'nothing'}; use a file of RUN/logs/bad-batches", file=sys.stderr)
        return 2
    try:
        print(replay(Path(arguments[0])))
    except LearnerError as error:
        print(f"replay: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
