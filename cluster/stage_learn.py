"""Policy SFT on solved paths, and the fit of the process reward model (method section 4)."""

from __future__ import annotations

import dataclasses
from typing import Any

from cluster.context import RunContext
from learners.batches import Example
from learners.models import calibrate_head
from reasoning import calibration
from reasoning.budgets import within_tokens
from reasoning.labels import held_out, label_counts, mean_target, solved_paths, step_labels
from reasoning.pairs import step_pairs
from reasoning.records import Path, StepLabel, StepPair
from reasoning.steps import StepCodec, completion


def search_paths(run: RunContext) -> list[Path]:
    """D_process so far: every path that a search of this run found, after the prompt without demonstrations."""
    problems = {p.id: p for p in run.train}
    shards = sorted(p.stem for p in (run.dir.data / "paths").glob("round-*.parquet"))
    paths = run.store.read_paths(shards)
    return [run.with_own_prompt(p, problems[p.problem_id]) for p in paths if p.problem_id in problems]


# --- policy SFT ---


def policy_sft(run: RunContext, round_: int) -> dict[str, Any]:
    """Fine-tune the policy on D+ (in the first round on demonstrations too), then serve it without demonstrations."""
    c = run.config.sft
    chosen = solved_paths(search_paths(run), c.per_problem)
    examples = [path_example(path) for path in chosen]
    if round_ == 1:
        examples += _demonstration_examples(run, c.demonstrations)
    longest = run.config.learner.max_tokens
    kept = [e for e in examples if len(e.token_ids) <= longest]
    if not kept:
        return {"skipped": "no solved path and no demonstration to learn from"}
    run.workers.learner.load(run.spec(run.policy, "policy", c.learning_rate), run.config.seed)
    history = run.fit("sft", kept, run.fit_settings(c.batch_size, c.epochs), round_)
    run.state["policy"] = run.checkpoint(f"policy-round-{round_}-sft")
    run.state["shots"] = 0  # it has learnt the step format
    run.state.setdefault("reference", run.state["policy"])
    run.deploy(round_, run.policy)
    loss = history[-1]["sft/loss"]
    return {
        "examples": len(kept),
        "solved_paths": len(chosen),
        "too_long": len(examples) - len(kept),
        "loss": loss,
        "note": f"{len(chosen)} solved paths and {len(kept) - len(chosen)} demonstrations, loss {loss:.3f}",
    }


def path_example(path: Path) -> Example:
    """A path as something to learn: its sampled tokens after its prompt."""
    ids, mask, _ = completion(path.steps)
    prompt = path.prompt_ids
    return Example((*prompt, *ids), (*[0] * len(prompt), *mask), path.problem_id)


def _demonstration_examples(run: RunContext, count: int) -> list[Example]:
    codec = StepCodec(run.tokens.encode)
    problems = {p.id: p for p in run.demonstration_problems}
    held = {p.id for p in run.held_out}
    examples = []
    usable = [d for d in run.demonstrations if d.problem_id not in held]
    count = min(count, len(usable))
    # Evenly from the whole list, which is ordered by style and difficulty.
    for demonstration in (usable[i * len(usable) // count] for i in range(count)):
        prompt = run.prompts(0).ids(problems[demonstration.problem_id])
        ids, mask = codec.demonstration(demonstration)
        examples.append(Example((*prompt, *ids), (*[0] * len(prompt), *mask), demonstration.problem_id))
    return examples


# --- PRM ---


def prm(run: RunContext, round_: int) -> dict[str, Any]:
    """Fit the process reward model on soft step values; measure and calibrate it on problems that it has not seen."""
    c = run.config.prm
    paths = search_paths(run)
    unseen = [p for p in paths if held_out(p.problem_id, c.held_out)]
    seen = [p for p in paths if not held_out(p.problem_id, c.held_out)]
    train, too_long = _choose_paths(run, seen, c.token_budget, solved_first=True)
    measure, _ = _choose_paths(run, unseen, c.token_budget // 2, solved_first=False)
    # After choosing: a step that several paths share is labelled in the first that is there.
    chosen, measured = step_labels(train, c.labels), step_labels(measure)
    pairs = step_pairs(train, c.pairs) if c.objective == "pairwise" else []
    pairs = [pair for pair in pairs if _longest(pair) <= run.config.learner.max_tokens]
    if not (pairs if c.objective == "pairwise" else chosen):
        return {"skipped": "no two siblings far enough apart" if c.objective == "pairwise" else "no labelled step"}
    # From the policy, which knows the step format; the head is new.
    prior = min(0.99, max(0.01, mean_target(step_labels(train))))
    fresh = dataclasses.replace(run.spec(run.policy, "value", c.learning_rate), prior=prior)
    run.workers.learner.load(fresh, run.config.seed)
    settings = run.fit_settings(c.batch_size, c.epochs)
    if pairs:
        history = run.fit("prm_pairs", pairs, settings, round_, "prm", margin=c.margin)
    else:
        history = run.fit("prm", chosen, settings, round_)
    steps = _scored(run, measured)
    quality, fitted = calibration.quality(steps), calibration.fit_steps(steps)
    run.log({f"prm/{k}": v for k, v in quality.items() if v is not None}, round_)
    run.store.write_records("labels", f"round-{round_}", chosen + measured)
    made = run.checkpoint(f"prm-round-{round_}")
    calibrate_head(run.dir.path / made, fitted.slope, fitted.bias)
    usable = good_enough(quality["auc"], c.min_auc)
    run.state["prm"] = made if usable else None
    shown = f"AUC {quality['auc']:.3f}" if quality["auc"] is not None else "AUC unknown (one class only)"
    taught = f"{len(pairs)} pairs" if pairs else f"{len(chosen)} paths"
    loss = history[-1]["prm_pairs/loss" if pairs else "prm/loss"]
    note = f"{taught}, loss {loss:.3f}, {shown} on {len(measured)} unseen paths"
    if not usable:
        note += f"; refused: below prm.min_auc of {c.min_auc:g}, outcomes alone decide"
    found = {"labels": len(chosen), "pairs": len(pairs), "too_long": too_long, "usable": usable, **quality}
    return {**found, "slope": fitted.slope, "bias": fitted.bias, "note": note}


def good_enough(auc: float | None, bar: float) -> bool:
    """Whether a reward model may decide anything; one whose AUC is not known may where there is no bar (0)."""
    return bar == 0 or (auc is not None and auc >= bar)


def _choose_paths(run: RunContext, paths: list[Path], budget: int, solved_first: bool) -> tuple[list[Path], int]:
    """Labelled paths within the token budget.

    `solved_first`: solved and unsolved paths of a problem in turn, since few are solved and those teach; the values
    learnt are then higher than the policy's pass rates. What is measured on is drawn without looking.
    """
    longest = run.config.learner.max_tokens
    labelled = [p for p in paths if any(step.sampled for step in p.steps)]
    return within_tokens(
        labelled, _path_length, _problem_of, budget, longest, run.config.seed, lambda p: solved_first and p.solved
    )


def _problem_of(path: Path) -> str:
    return path.problem_id


def _path_length(path: Path) -> int:
    return len(path.prompt_ids) + sum(len(s.header_ids) + len(s.token_ids) for s in path.steps)


def _longest(pair: StepPair) -> int:
    return len(pair.prefix_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids))


def _scored(run: RunContext, labels: list[StepLabel]) -> list[calibration.Scored]:
    """Every step that something is known of, as the learner's model scores it; each terminal below it counts once."""
    if not labels:
        return []
    scores = run.workers.learner.step_scores(labels, run.fit_settings(1, 1), run.config.learner.deadline_s)
    return [
        calibration.Scored(label.problem_id, score, *label_counts(target, weight))
        for row, label in zip(scores, labels, strict=True)
        for score, target, weight in zip(row, label.targets, label.weights, strict=True)
        if weight > 0
    ]
