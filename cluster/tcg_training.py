"""How the test case generator learns: SFT, DPO, and a round of self-play (method section 2; paper section 3.1)."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path

from actors.suite_builder import Material, OwnPairs
from cluster.context import RunContext
from cluster.tcg_generation import Texts, builder, draw_samples, each, fingerprint, prompt, write_texts
from learners.adapters import Lora
from learners.batches import Example, PreferenceExample
from learners.learner import LearnerSpec
from reasoning.records import Problem, Sample, TextPair, Trajectory, mean
from reasoning.self_play import text_trajectories
from reasoning.test_cases import OPENING, new_cases, preference_pairs, sft_completions

Materials = dict[str, Material]


def materials(run: RunContext, problems: Sequence[Problem], programs: dict[str, list[str]]) -> Materials:
    """What there is to learn from, by problem id; `programs`: of the policy."""

    maker = builder(run)
    found = asyncio.run(each(lambda p: maker.material(p, programs.get(p.id, [])), problems))
    return {p.id: found.get(p.id, Material([], [], [])) for p in problems}


def spec(run: RunContext, model: Path, learning_rate: float) -> LearnerSpec:
    """The generator as a learner, with adapters where the configuration asks for them."""
    c = run.config.tcg
    lora = Lora(c.lora_rank, c.lora_alpha) if c.lora_rank else None
    return dataclasses.replace(run.spec(model, "policy", learning_rate), lora=lora)


def _example(run: RunContext, problem: Problem, start: Sequence[int], completion: str) -> Example:
    ids = [*run.tokens.encode(completion.removeprefix(OPENING)), *run.tokens.end_ids]
    return Example((*start, *ids), (*[0] * len(start), *[1] * len(ids)), problem.id)


def _prompt(run: RunContext, problem: Problem, rng: random.Random) -> list[int]:
    """With the reference, or for its share of the prompts without."""
    return prompt(run, problem, with_code=rng.random() >= run.config.tcg.question_only_share)


# --- SFT ---


def sft_examples(run: RunContext, problems: Sequence[Problem], found: Materials, rng: random.Random) -> list[Example]:
    """Completions of three true tests each, none longer than the learner takes."""
    examples = []
    for problem in problems:
        for text in sft_completions(found[problem.id].tests, rng, run.config.tcg.sft_completions):
            examples.append(_example(run, problem, _prompt(run, problem, rng), text))
    return [e for e in examples if len(e.token_ids) <= run.config.learner.max_tokens]


def train_sft(run: RunContext, round_: int, model: Path, examples: list[Example]) -> Path:
    """Fine-tune; the engines hold the new generator then. Returns its checkpoint, which is that of an earlier process
    where it had the same to learn: what comes after may have been interrupted."""
    c = run.config.tcg
    settings = [fingerprint(model), c.model_dump(mode="json"), run.config.seed, [e.token_ids for e in examples]]
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    known = run.state.get("tcg_sft_made", {})
    if known.get("digest") == digest and (run.dir.path / known["path"]).is_dir():
        run.state["tcg_sft"] = known["path"]
        run.serve(run.dir.path / known["path"], round_)
        return run.dir.path / str(known["path"])
    run.workers.learner.load(spec(run, model, c.learning_rate), run.config.seed)
    run.fit("sft", examples, run.fit_settings(c.batch_size, c.sft_epochs), round_, "tcg_sft")
    run.state["tcg_sft"] = run.checkpoint(f"tcg-sft-round-{round_}")
    made = run.dir.path / run.state["tcg_sft"]
    run.state["tcg_sft_made"] = {"digest": digest, "path": run.state["tcg_sft"]}
    run.dir.write_state(run.state)
    run.deploy(round_, made)
    return made


# --- DPO ---


def dpo_pairs(
    run: RunContext, problems: Sequence[Problem], found: Materials, own: OwnPairs, rng: random.Random
) -> list[PreferenceExample]:
    """Preference pairs, none longer than the learner takes: some of the generator's `own` texts, first those that rank
    them, the others equally many of each problem."""
    c = run.config.tcg
    by_id = {p.id: p for p in problems}
    mine_first = [*rng.sample(own.ranked, len(own.ranked)), *rng.sample(own.corrected, len(own.corrected))]
    pairs = mine_first[: int(c.dpo_pairs * c.dpo_own_share)]
    left = c.dpo_pairs - len(pairs)
    per_problem = -(-left // max(1, len(problems)))
    others: list[TextPair] = []
    for problem in rng.sample(list(problems), len(problems)):
        mine = found[problem.id]
        others += preference_pairs(problem, mine.tests, "", rng, per_problem, mine.wrong)
    examples: list[PreferenceExample] = []
    for pair in [*pairs, *others[:left]]:
        problem = by_id[pair.problem_id]
        start = _prompt(run, problem, rng)
        chosen, rejected = (_example(run, problem, start, text) for text in (pair.chosen, pair.rejected))
        if max(len(chosen.token_ids), len(rejected.token_ids)) <= run.config.learner.max_tokens:
            examples.append(PreferenceExample(chosen, rejected))
    return examples


def own_pairs(run: RunContext, round_: int, problems: Sequence[Problem], step: str) -> OwnPairs:
    """From what the generator that the engines hold writes on the problems that it learns from."""
    count = run.config.tcg.dpo_texts
    shards = own_shards(run, round_, step)
    return judged(
        run, problems, [write_texts(run, problems, shard, with_code, 3, count) for shard, with_code in shards]
    )


def own_shards(run: RunContext, round_: int, step: str) -> list[tuple[str, bool]]:
    """Where such texts are kept, and whether their prompts show the reference."""
    return [(f"round-{round_}-{step}-{'code' if shown else 'question'}", shown) for shown in _modes(run)]


def judged(run: RunContext, problems: Sequence[Problem], by_mode: Sequence[Texts]) -> OwnPairs:
    """Preference pairs of texts that were written on the problems."""
    maker = builder(run)

    async def one(problem: Problem) -> OwnPairs:
        texts = [text for texts in by_mode for text in texts.get(problem.id, ()) if text is not None]
        return await maker.own_pairs(problem, [new_cases(text, problem) for text in texts])

    found = asyncio.run(each(one, problems)).values()
    return OwnPairs([p for one in found for p in one.ranked], [p for one in found for p in one.corrected])


def _modes(run: RunContext) -> list[bool]:
    """The prompts that the generator is trained on: with the reference, without it."""
    share = run.config.tcg.question_only_share
    return [shown for shown, some in ((True, share < 1), (False, share > 0)) if some]


def train_dpo(run: RunContext, round_: int, model: Path, pairs: list[PreferenceExample]) -> list[dict[str, float]]:
    """Prefer true tests; the engines hold the new generator then, or `model` where training had to be ended. Returns
    the rows of metrics."""
    c = run.config.tcg
    run.workers.learner.load(spec(run, model, c.dpo_learning_rate), run.config.seed)
    known = _with_reference(run, model, pairs)
    history = run.fit(
        "dpo",
        known,
        run.fit_settings(c.batch_size, 1),
        round_,
        "tcg_dpo",
        beta=c.beta,
        sft_weight=c.dpo_sft_weight,
        most_drop=c.dpo_most_drop,
    )
    if history[-1]["dpo/stopped"]:
        # The true texts have become much less likely: what SFT came to is the better generator.
        run.serve(model, round_)
        return history
    run.state["tcg"] = run.checkpoint(f"tcg-round-{round_}")
    run.deploy(round_, run.dir.path / run.state["tcg"])
    return history


def _with_reference(run: RunContext, model: Path, pairs: Sequence[PreferenceExample]) -> list[PreferenceExample]:
    """The pairs with their log-probabilities under the weights that DPO starts from: those of the loaded learner, or
    kept from an earlier process that had the same weights and pairs."""
    texts = [text for pair in pairs for text in (pair.chosen, pair.rejected)]
    weights = fingerprint(model)
    digest = hashlib.sha256(json.dumps([weights, *(e.token_ids for e in texts)]).encode()).hexdigest()[:16]
    file = run.dir.data / "reference_logprobs" / f"{digest}.json"
    if file.exists():
        values = json.loads(file.read_text(encoding="utf-8"))
    else:
        settings = run.fit_settings(run.config.tcg.batch_size, 1)
        values = run.workers.learner.completion_logprobs(texts, settings, run.config.learner.deadline_s)
        file.parent.mkdir(parents=True, exist_ok=True)
        run.dir.write_json(file, values)
    return [dataclasses.replace(pair, reference=(values[2 * i], values[2 * i + 1])) for i, pair in enumerate(pairs)]


# --- self-play ---


def self_play(run: RunContext, round_: int, problems: Sequence[Problem], found: Materials) -> dict[str, float] | None:
    """One round: texts by the generator that the engines hold, rewarded by what their tests tell apart, and a step of
    policy gradient; the engines hold the new generator then. None where there was nothing to learn."""
    c = run.config.tcg
    with_code = c.mode == "reference"
    starts = {p.id: prompt(run, p, with_code) for p in problems}
    drawn: dict[str, list[Sample | None]] = {}
    copies = c.self_play_prompts
    draw_samples(run, problems, lambda p: [starts[p.id]] * copies, 7 * round_, drawn.__setitem__)
    maker = builder(run)

    async def one(problem: Problem) -> list[float | None]:
        texts = [new_cases(s.text, problem) for s in drawn[problem.id] if s is not None]
        return await maker.rewards(problem, texts, found[problem.id].programs)

    rewards = asyncio.run(each(one, problems))
    trajectories: list[Trajectory] = []
    for problem in [p for p in problems if p.id in rewards]:
        samples = [s for s in drawn[problem.id] if s is not None]
        trajectories += text_trajectories(problem.id, starts[problem.id], samples, rewards[problem.id], c.temperature)
    known = [r for one in rewards.values() for r in one if r is not None]
    trajectories = [t for t in trajectories if len(t.token_ids) <= run.config.learner.max_tokens]
    if not trajectories:
        return None
    assert run.serving is not None
    run.workers.learner.load(spec(run, run.serving, c.self_play_learning_rate), run.config.seed)
    settings = run.fit_settings(c.batch_size, 1)
    r = run.config.rl
    run.fit("rl", trajectories, settings, round_, "tcg_rl", clip=r.clip, truncation=r.truncation)
    run.state["tcg"] = run.checkpoint(f"tcg-self-play-round-{round_}")
    run.deploy(round_, run.dir.path / run.state["tcg"])
    return {"texts": len(known), "reward": mean(known), "trajectories": len(trajectories)}
