"""Policy RL: groups of paths by the policy as it is, their rewards, and a step of improvement (method section 5)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import Any

from cluster.context import RunContext
from cluster.rollouts import Chain, sample_chains
from cluster.stage_learn import path_example, search_paths
from cluster.tcg_generation import fingerprint
from learners.batches import Example, PreferenceExample
from reasoning.advantages import credit_paths, with_reference
from reasoning.budgets import within_tokens
from reasoning.guards import shape
from reasoning.pairs import path_pairs, step_pairs
from reasoning.records import Path, StepLabel, StepPair, Trajectory, mean


def policy_rl(run: RunContext, round_: int) -> dict[str, Any]:
    """Sample groups of paths with the current policy, and improve it by what passed and, with a PRM, by its steps."""
    paths = _drawn(run, round_)
    _look_at(run, round_, paths)
    return improve(run, round_, paths)


def _drawn(run: RunContext, round_: int) -> list[Path]:
    """Groups of paths by the policy; those of an interrupted attempt at the stage, where the same was to be drawn:
    their training goes on from its snapshot then."""
    c, shard = run.config, f"rl-round-{round_}"
    made_by = {"policy": fingerprint(run.policy), "seed": c.seed, "problems": c.rl.problems, "group": c.rl.group}
    made_by |= {"shard": shard, "search": c.search_settings().model_dump(mode="json")}
    if run.state.get("rl_drawn") == made_by:
        return run.store.read_paths([shard])
    paths = _sample_groups(run, round_)
    run.store.write_paths(shard, paths)
    run.state["rl_drawn"] = made_by
    run.dir.write_state(run.state)
    return paths


def _look_at(run: RunContext, round_: int, paths: list[Path]) -> None:
    """Log the shape of the paths, and say where it is far from what it was a round ago, or they are all the same."""
    now = shape(paths)
    run.log({f"guard/{name}": value for name, value in now.items()}, round_)
    known = (run.dir.data / "paths" / f"rl-round-{round_ - 1}.parquet").exists()
    run.guard(now, round_, shape(run.store.read_paths([f"rl-round-{round_ - 1}"])) if known else {})


def improve(run: RunContext, round_: int, paths: list[Path]) -> dict[str, Any]:
    """Improve the policy of the state, which drew the `paths`."""
    learn = _by_preference if run.config.rl.algorithm == "dpo" else _by_gradient
    learnt = learn(run, round_, paths)
    if "skipped" in learnt:
        return learnt
    run.state["policy"] = run.checkpoint(f"policy-round-{round_}")
    run.deploy(round_, run.policy)
    if run.config.rl.algorithm == "policy_gradient" and run.config.rl.advantage == "gae":
        _fit_critic(run, round_, paths)
    solved = sum(p.solved for p in paths)
    return {
        "paths": len(paths),
        "passed": solved,
        "mean_outcome": mean([p.value or 0.0 for p in paths]),
        "version": run.state.get("weight_version"),
        **learnt,
        "note": f"{len(paths)} paths, {solved} passed; trained on {learnt['note']}",
    }


def _by_gradient(run: RunContext, round_: int, paths: list[Path]) -> dict[str, Any]:
    c = run.config.rl
    credit = c.credit(round_, run.config.rounds)
    scores = _process_scores(run, paths) if credit.alpha < 1 else {}
    if not scores:  # without a reward model the outcome is all that there is
        credit = dataclasses.replace(credit, alpha=1.0)
    expected = _expected(run, paths) if credit.advantage == "gae" else {}
    trajectories = credit_paths(paths, scores, credit, expected)
    chosen, too_long = within_tokens(
        trajectories,
        lambda t: len(t.token_ids),
        lambda t: t.problem_id,
        c.token_budget,
        run.config.learner.max_tokens,
        run.config.seed,
    )
    if not chosen:
        return {"skipped": f"no group of {len(paths)} paths has anything to tell apart"}
    chosen = _with_reference(run, chosen)
    run.store.write_records("trajectories", f"round-{round_}", chosen)
    run.workers.learner.load(run.spec(run.policy, "policy", c.learning_rate), run.config.seed)
    run.log({"rl/alpha": credit.alpha}, round_)
    names = ("clip", "truncation", "sequence_bound", "kl_weight")
    settings = run.fit_settings(c.batch_size, c.epochs)
    history = run.fit("rl", chosen, settings, round_, "rl", **{name: getattr(c, name) for name in names})
    if not history:
        return {"skipped": f"the learner would have drawn none of {len(chosen)} paths: mismatch of the sampler"}
    kl = history[0]["rl/mismatch_kl"]
    run.guard({name: history[-1][f"rl/{name}"] for name in ("mismatch_kl", "ess", "entropy")}, round_)
    note = f"{len(chosen)}; mismatch KL {kl:.4f}"
    known = kl if math.isfinite(kl) else None
    return {"trajectories": len(chosen), "too_long": too_long, "mismatch_kl": known, "note": note}


def _by_preference(run: RunContext, round_: int, paths: list[Path]) -> dict[str, Any]:
    """DPO against the policy as it is: paths that pass against paths that fail, and steps against their siblings."""
    c = run.config.rl
    made = [PreferenceExample(path_example(a), path_example(b)) for a, b in path_pairs(paths, c.pairs)]
    if c.sibling_pairs:
        made += map(_step_example, step_pairs(search_paths(run), c.sibling_pairs))
    longest = run.config.learner.max_tokens
    pairs = [p for p in made if max(len(p.chosen.token_ids), len(p.rejected.token_ids)) <= longest]
    if not pairs:
        return {"skipped": f"nothing is better than anything else among {len(paths)} paths, nor among steps of search"}
    run.workers.learner.load(run.spec(run.policy, "policy", c.learning_rate), run.config.seed)
    settings = run.fit_settings(c.batch_size, c.epochs)
    history = run.fit("dpo", pairs, settings, round_, "rl", beta=c.beta, sft_weight=c.sft_weight)
    margin = history[-1]["dpo/margin"]
    return {"pairs": len(pairs), "too_long": len(made) - len(pairs), "note": f"{len(pairs)} pairs; margin {margin:.3f}"}


def _step_example(pair: StepPair) -> PreferenceExample:
    """A pair of siblings: only what was sampled of the two steps is learnt."""

    def example(ids: Sequence[int], header: int) -> Example:
        mask = [0] * (len(pair.prefix_ids) + header) + [1] * (len(ids) - header)
        return Example((*pair.prefix_ids, *ids), tuple(mask), pair.problem_id)

    return PreferenceExample(
        example(pair.chosen_ids, pair.chosen_header), example(pair.rejected_ids, pair.rejected_header)
    )


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
    prm = run.state.get("prm")
    return _values(run, run.dir.path / prm, [_ends(path)[1:] for path in paths], paths) if prm else {}


def _ends(path: Path) -> list[int]:
    """Where the prompt and each step of a path end."""
    ends = [len(path.prompt_ids) - 1]
    for step in path.steps:
        ends.append(ends[-1] + len(step.header_ids) + len(step.token_ids))
    return ends


def _label(path: Path, ends: Sequence[int], target: float, weight: float) -> StepLabel:
    ids = path.prompt_ids
    for step in path.steps:
        ids += step.header_ids + step.token_ids
    return StepLabel(
        problem_id=path.problem_id,
        token_ids=ids,
        ends=tuple(ends),
        targets=(target,) * len(ends),
        weights=(weight,) * len(ends),
    )


def _values(
    run: RunContext, model: FilePath, ends: Sequence[Sequence[int]], paths: Sequence[Path]
) -> dict[int, list[float]]:
    """What a value model says at some positions of each path, by index."""
    run.workers.learner.load(run.spec(model, "value", 1e-6), run.config.seed)
    labels = [_label(path, own, 0.0, 0.0) for path, own in zip(paths, ends, strict=True)]
    scores = run.workers.learner.step_scores(labels, run.fit_settings(1, 1), run.config.learner.deadline_s)
    return dict(enumerate(scores))


# --- critic ---


def _expected(run: RunContext, paths: list[Path]) -> dict[int, list[float]]:
    """What the critic of the round before expects of each path before its first step and after each; nothing in the
    first round, where the mean of the group stands for it."""
    critic = run.state.get("critic")
    return _values(run, run.dir.path / critic, list(map(_ends, paths)), paths) if critic else {}


def _fit_critic(run: RunContext, round_: int, paths: list[Path]) -> None:
    """Teach the critic, after its values were used, what the paths of this round came to."""
    c = run.config
    known = [path for path in paths if path.value is not None and path.steps]
    labels = [_label(path, _ends(path), path.value or 0.0, 1.0) for path in known]
    labels = [label for label in labels if len(label.token_ids) <= c.learner.max_tokens]
    if not labels:
        return
    before = run.state.get("critic")
    prior = min(0.99, max(0.01, mean([path.value or 0.0 for path in known])))
    start = run.spec(run.dir.path / before if before else run.policy, "value", c.prm.learning_rate)
    run.workers.learner.load(dataclasses.replace(start, prior=prior), c.seed)
    run.fit("prm", labels, run.fit_settings(c.prm.batch_size, c.prm.epochs), round_, "critic")
    run.state["critic"] = run.checkpoint(f"critic-round-{round_}")
