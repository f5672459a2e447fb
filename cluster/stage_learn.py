"""Policy SFT, PRM fit and policy RL (method sections 4 and 5)."""

from __future__ import annotations

import dataclasses
from typing import Any

from cluster.context import RunContext
from cluster.rollouts import Chain, sample_chains
from learners.batches import Example, PreferenceExample
from learners.models import calibrate_head
from reasoning import calibration
from reasoning.advantages import group_relative, with_reference
from reasoning.budgets import within_tokens
from reasoning.labels import held_out, label_counts, mean_target, solved_paths, step_labels
from reasoning.pairs import path_pairs, step_pairs
from reasoning.records import Path, StepLabel, StepPair, Trajectory, mean
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
    examples = [_path_example(path) for path in chosen]
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
    run.publish_learner(round_, run.policy)
    run.tell_prompts()
    loss = history[-1]["sft/loss"]
    return {
        "examples": len(kept),
        "solved_paths": len(chosen),
        "too_long": len(examples) - len(kept),
        "loss": loss,
        "note": f"{len(chosen)} solved paths and {len(kept) - len(chosen)} demonstrations, loss {loss:.3f}",
    }


def _path_example(path: Path) -> Example:
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
        labelled, _path_length, _problem, budget, longest, run.config.seed, lambda p: solved_first and p.solved
    )


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


def _length(item: Trajectory) -> int:
    return len(item.token_ids)


def _problem(item: Path | Trajectory) -> str:
    return item.problem_id


# --- policy RL ---


def policy_rl(run: RunContext, round_: int) -> dict[str, Any]:
    """Sample groups of paths with the current policy, and improve it by what passed and, with a PRM, by its steps."""
    paths = _sample_groups(run, round_)
    run.store.write_paths(f"rl-round-{round_}", paths)
    learn = _by_preference if run.config.rl.algorithm == "dpo" else _by_gradient
    learnt = learn(run, round_, paths)
    if "skipped" in learnt:
        return learnt
    run.state["policy"] = run.checkpoint(f"policy-round-{round_}")
    sync = run.publish_learner(round_, run.policy)
    run.tell_prompts()
    solved = sum(p.solved for p in paths)
    return {
        "paths": len(paths),
        "passed": solved,
        "mean_outcome": mean([p.value or 0.0 for p in paths]),
        "version": sync.version,
        **learnt,
        "note": f"{len(paths)} paths, {solved} passed; trained on {learnt['note']}",
    }


def _by_gradient(run: RunContext, round_: int, paths: list[Path]) -> dict[str, Any]:
    c = run.config.rl
    credit = c.credit(round_, run.config.rounds)
    scores = _process_scores(run, paths) if credit.alpha < 1 else {}
    if not scores:  # without a reward model the outcome is all that there is
        credit = dataclasses.replace(credit, alpha=1.0)
    trajectories = group_relative(paths, scores, credit)
    chosen, too_long = within_tokens(
        trajectories, _length, _problem, c.token_budget, run.config.learner.max_tokens, run.config.seed
    )
    if not chosen:
        return {"skipped": f"no group of {len(paths)} paths has anything to tell apart"}
    chosen = _with_reference(run, chosen)
    run.store.write_records("trajectories", f"round-{round_}", chosen)
    run.workers.learner.load(run.spec(run.policy, "policy", c.learning_rate), run.config.seed)
    run.log({"rl/alpha": credit.alpha}, round_)
    bounds = {"clip": c.clip, "truncation": c.truncation, "sequence_bound": c.sequence_bound}
    settings = run.fit_settings(c.batch_size, c.epochs)
    history = run.fit("rl", chosen, settings, round_, **bounds, kl_weight=c.kl_weight)
    if not history:
        return {"skipped": f"the learner would have drawn none of {len(chosen)} paths: mismatch of the sampler"}
    kl = history[0]["rl/mismatch_kl"]
    note = f"{len(chosen)}; mismatch KL {kl:.4f}"
    return {"trajectories": len(chosen), "too_long": too_long, "mismatch_kl": kl, "note": note}


def _by_preference(run: RunContext, round_: int, paths: list[Path]) -> dict[str, Any]:
    """DPO against the policy as it is."""
    c = run.config.rl
    made = [PreferenceExample(*map(_path_example, pair)) for pair in path_pairs(paths, c.pairs)]
    longest = run.config.learner.max_tokens
    pairs = [p for p in made if max(len(p.chosen.token_ids), len(p.rejected.token_ids)) <= longest]
    if not pairs:
        return {"skipped": f"no problem has paths that pass and paths that fail among {len(paths)}"}
    run.workers.learner.load(run.spec(run.policy, "policy", c.learning_rate), run.config.seed)
    settings = run.fit_settings(c.batch_size, c.epochs)
    history = run.fit("dpo", pairs, settings, round_, "rl", beta=c.beta, sft_weight=c.sft_weight)
    margin = history[-1]["dpo/margin"]
    return {"pairs": len(pairs), "too_long": len(made) - len(pairs), "note": f"{len(pairs)} pairs; margin {margin:.3f}"}


def _with_reference(run: RunContext, chosen: list[Trajectory]) -> list[Trajectory]:
    """The trajectories with the log-probabilities of the policy that the learner is kept near to, where it is."""
    if not run.config.rl.kl_weight:
        return chosen
    reference = run.dir.path / run.state["reference"] if run.state.get("reference") else run.model
    run.workers.learner.load(run.spec(reference, "policy", 1e-6), run.config.seed)
    found = run.workers.learner.token_logprobs(chosen, run.fit_settings(1, 1), run.config.learner.deadline_s)
    return [with_reference(trajectory, values) for trajectory, values in zip(chosen, found, strict=True)]


def _sample_groups(run: RunContext, round_: int) -> list[Path]:
    c = run.config.rl
    suites = {s.problem_id: s for s in run.store.read_suites("current") if s.accepted}
    problems = [p for p in run.train_of(round_) if p.id in suites]
    # Problems that the search found neither trivial nor hopeless teach most; the others fill up.
    rates = _pass_rates(run)
    problems.sort(key=lambda p: (not 0 < rates.get(p.id, 0.0) < 1, p.id))
    chains = [
        Chain(
            f"rl-round-{round_}/{problem.id}/{index}",
            problem,
            suites[problem.id],
            run.config.seed * 1_000_003 + 104_729 * round_ + index,
        )
        for problem in problems[: c.problems]
        for index in range(c.group)
    ]
    # The learner's probabilities are over the whole vocabulary; so must be the ones that the ratio divides by.
    settings = run.config.search_settings().model_copy(update={"top_p": 1.0})
    return sample_chains(run, chains, settings, "RL rollouts", lambda ps: {"solved": sum(p.solved for p in ps)})[0]


def _pass_rates(run: RunContext) -> dict[str, float]:
    counts: dict[str, list[int]] = {}
    for path in search_paths(run):
        passed, total = counts.setdefault(path.problem_id, [0, 0])
        counts[path.problem_id] = [passed + path.solved, total + 1]
    return {name: passed / total for name, (passed, total) in counts.items()}


def _process_scores(run: RunContext, paths: list[Path]) -> dict[int, list[float]]:
    """PRM values of every step of every path, by index; nothing where there is no PRM."""
    if not run.state.get("prm"):
        return {}
    labels: list[StepLabel] = []
    for path in paths:
        ids = list(path.prompt_ids)
        ends = []
        for step in path.steps:
            ids += step.header_ids + step.token_ids
            ends.append(len(ids) - 1)
        zeros = (0.0,) * len(ends)
        labels.append(
            StepLabel(problem_id=path.problem_id, token_ids=tuple(ids), ends=tuple(ends), targets=zeros, weights=zeros)
        )
    run.workers.learner.load(run.spec(run.dir.path / run.state["prm"], "value", 1e-6), run.config.seed)
    scores = run.workers.learner.step_scores(labels, run.fit_settings(1, 1), run.config.learner.deadline_s)
    return dict(enumerate(scores))
