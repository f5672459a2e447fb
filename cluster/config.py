"""The configuration of a run: typed, strict, from a YAML file and dotted overrides. Imports without Ray or torch."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from learners.memory import LEAST_STAGE, Offload
from learners.packing import Packing
from reasoning.advantages import AdvantageName, CreditSettings
from reasoning.errors import InputError
from reasoning.guards import Bounds
from reasoning.labels import LabelKind
from reasoning.rewards import Decay, Phi, alpha_at
from reasoning.search import SearchSettings
from sandbox import Limits

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
BUDGETS = ("tiny", "laptop")
"""What the page of all settings compares."""


def shipped() -> tuple[str, ...]:
    """Names of the configurations that come with the project, the budgets first."""
    return (*BUDGETS, *sorted(p.stem for p in CONFIGS.glob("*.yaml") if p.stem not in BUDGETS))


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EngineConfig(_Section):
    """vLLM engines that run the search."""

    max_model_len: int = Field(default=2048, ge=256, le=1_000_000, description="tokens of prompt and steps together")
    max_num_seqs: int = Field(default=64, ge=1, le=4096, description="sequences that an engine runs at a time")
    kv_cache_gib: int = Field(default=1, ge=1, le=4096, description="CPU memory for keys and values, GiB")
    gpus: float = Field(default=0, ge=0, description="GPUs of an engine; 0 runs on CPU")


class LearnerConfig(_Section):
    """DeepSpeed ranks; policy, PRM and TCG learners take turns on them."""

    ranks: int = Field(default=1, ge=1, le=1024)
    zero_stage: int = Field(default=2, ge=0, le=3)
    threads: int = Field(default=2, ge=1, le=512, description="CPU threads of a rank")
    gpus: float = Field(default=0, ge=0, description="GPUs of a rank; 0 runs on CPU")
    micro_tokens: int = Field(default=1024, ge=64, description="tokens of a micro-batch, padding included")
    packing: Packing = Field(
        default="tree", description="a row per sequence; rows of several; rows in which equal beginnings stand once"
    )
    recompute: bool = Field(
        default=False, description="make activations again for the backward pass: less memory, a third more time"
    )
    offload: Offload = Field(
        default="none", description="kept in host memory until needed: optimizer states, or weights too (ZeRO stage 3)"
    )
    lora_rank: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="of adapters of policy and PRM, on all projections; 0: all weights",
    )
    lora_alpha: float = Field(default=16, gt=0, le=4096, description="adapters count alpha / rank")
    row_tokens: int = Field(default=512, ge=64, description="of a row with several sequences")
    max_tokens: int = Field(default=1024, ge=64, description="longer training sequences are dropped and counted")
    deadline_s: float = Field(default=3600, gt=0, description="of one fit")
    snapshot_s: float = Field(
        default=600, ge=0, description="a training under way is kept this often, and goes on from there; 0: never"
    )


class SandboxConfig(_Section):
    """Workers that run and judge programs."""

    workers: int = Field(default=2, ge=1, le=1024)
    slots: int = Field(default=1, ge=1, le=256, description="programs that a worker runs at a time")
    min_level: int = Field(default=1, ge=1, le=3, description="refuse to start below: 1 seccomp, 2 landlock, 3 cell")
    cpu_s: float = Field(default=1.0, gt=0, le=600, description="CPU seconds of one test")
    memory_mb: int = Field(default=512, ge=64, le=65536, description="address space of one test")
    packages: list[str] = Field(default=[], description="installed packages that programs may import, e.g. [numpy]")
    cache_entries: int = Field(
        default=10_000, ge=0, le=10_000_000, description="results that a rollout worker remembers; 0: none"
    )

    def limits(self) -> Limits:
        return Limits(cpu_s=self.cpu_s, memory_mb=self.memory_mb)


class TcgConfig(_Section):
    """Test case generator: training, generation, quality bar (method section 2)."""

    sft_completions: int = Field(default=1, ge=0, le=64, description="completions per problem; 0: no generator")
    sft_epochs: int = Field(default=1, ge=0, le=100, description="0: DPO begins with the generator as it is")
    dpo_pairs: int = Field(default=24, ge=0, le=100_000, description="preference pairs; 0 skips DPO")
    dpo_own_share: float = Field(
        default=0.8, ge=0, le=1, description="of the pairs, at most, that are made of the generator's own texts"
    )
    dpo_texts: int = Field(
        default=1,
        ge=1,
        le=256,
        description="texts per problem and kind of prompt that the generator writes for such pairs",
    )
    beta: float = Field(default=0.1, gt=0, le=10)
    dpo_sft_weight: float = Field(default=0.2, ge=0, le=100, description="of the chosen text's likelihood in the loss")
    dpo_most_drop: float = Field(
        default=0.5, gt=0, le=100, description="DPO ends early where chosen texts lose more, nats per token"
    )
    lora_rank: int = Field(default=0, ge=0, le=1024, description="of its adapters on all projections; 0: all weights")
    lora_alpha: float = Field(default=16, gt=0, le=4096, description="adapters count alpha / rank")
    learning_rate: float = Field(default=1e-4, gt=0, lt=1)
    dpo_learning_rate: float = Field(default=2e-5, gt=0, lt=1)
    batch_size: int = Field(default=8, ge=1)
    generator: str = Field(default="", description="directory of a trained generator to begin with; empty: the model")
    mode: Literal["reference", "question_only"] = Field(
        default="reference", description="outputs by executing references, or written and confirmed by consensus"
    )
    question_only_share: float = Field(
        default=0.5, ge=0, le=1, description="of the training prompts that do not show the reference"
    )
    policy_samples: int = Field(
        default=1, ge=0, le=64, description="programs per problem drawn from the policy, to measure suites with"
    )
    prompts: int = Field(default=1, ge=1, le=64, description="prompts per problem; each asks for three cases")
    max_tokens: int = Field(default=160, ge=16, le=4096)
    temperature: float = Field(default=0.8, gt=0, le=2)
    measure_problems: int = Field(
        default=16, ge=1, description="problems kept from its training to measure it on, a third at most"
    )
    suite_size: int = Field(default=8, ge=2, le=256, description="tests that decide a reward")
    fill_suites: bool = Field(default=True, description="up to that; false: only what kills all that can be killed")
    mutated_inputs: int = Field(default=24, ge=0, le=1000, description="inputs per problem made from known ones")
    screening_inputs: int = Field(default=16, ge=0, le=1000, description="further ones, to tell mutants from equals")
    mutants: int = Field(default=12, ge=0, le=1000, description="faulty programs per problem, to measure suites with")
    kill_bar: float = Field(default=0.5, ge=0, le=1, description="suites that reject a smaller share are refused")
    self_play: bool = Field(default=False, description="reward what the generator writes by what its tests tell apart")
    self_play_prompts: int = Field(default=4, ge=2, le=256, description="texts per problem that are compared")
    self_play_learning_rate: float = Field(default=5e-6, gt=0, lt=1)


class SearchConfig(SearchSettings):
    """Tree search over the training problems (method section 3)."""

    problems: int = Field(default=48, ge=1, description="training problems searched per round")
    trees_in_flight: int = Field(default=16, ge=1, le=100_000)
    shots: int = Field(default=2, ge=0, le=8, description="demonstrations in the prompt before the first SFT")


class NewDataConfig(_Section):
    """Search with the updated policy and the PRM, at the end of a round."""

    problems: int = Field(default=24, ge=0)
    token_budget: int = Field(default=600, ge=64, description="sampled tokens per tree")
    rollout_weight: float = Field(default=0.5, ge=0, le=1, description="lambda; below 1 the PRM counts")


class SftConfig(_Section):
    """Policy SFT on D+ and, in the first round, on the demonstrations (method section 4)."""

    epochs: int = Field(default=2, ge=1, le=100)
    batch_size: int = Field(default=8, ge=1)
    learning_rate: float = Field(default=1e-4, gt=0, lt=1)
    demonstrations: int = Field(default=64, ge=0, description="how many demonstrations are trained on, first round")
    per_problem: int = Field(default=2, ge=1, description="solved paths per problem")


class PrmConfig(_Section):
    """Process reward model, split by problem (method section 4)."""

    objective: Literal["pointwise", "pairwise"] = Field(
        default="pointwise", description="values of steps, or which of two siblings is better"
    )
    labels: LabelKind = Field(
        default="soft", description="pass rates, or whether any of at least 8 terminals passes; of pointwise"
    )
    margin: float = Field(default=0.0, ge=0, le=100, description="of logits per difference of pass rates; of pairwise")
    pairs: int = Field(default=16, ge=1, description="per problem at most; of pairwise")
    epochs: int = Field(default=1, ge=1, le=100)
    batch_size: int = Field(default=8, ge=1)
    learning_rate: float = Field(default=1e-4, gt=0, lt=1)
    token_budget: int = Field(default=20_000, ge=512, description="training tokens per epoch")
    held_out: float = Field(default=0.25, gt=0, lt=1, description="share of problems kept for measuring")
    min_auc: float = Field(
        default=0.5, ge=0, le=1, description="on those; a worse model, or an unknown one, decides nothing; 0: any may"
    )


class RlConfig(_Section):
    """Group-relative policy RL with process rewards (method section 5)."""

    problems: int = Field(default=24, ge=1)
    group: int = Field(default=6, ge=2, le=1024, description="paths sampled per problem")
    epochs: int = Field(default=1, ge=1, le=16)
    batch_size: int = Field(default=24, ge=1)
    learning_rate: float = Field(default=1e-5, gt=0, lt=1)
    algorithm: Literal["policy_gradient", "dpo"] = Field(
        default="policy_gradient",
        description="PPO-clip on advantages, or DPO of paths that pass against some that fail",
    )
    pairs: int = Field(default=2, ge=1, description="per problem at most; of dpo")
    sibling_pairs: int = Field(default=4, ge=0, description="of steps that search found, per problem at most; of dpo")
    beta: float = Field(default=0.1, gt=0, le=10, description="of dpo")
    sft_weight: float = Field(default=0.2, ge=0, le=100, description="of the passing path's likelihood; of dpo")
    advantage: AdvantageName = Field(
        default="leave_one_out", description="how rewards of paths become advantages of their steps; gae: by a critic"
    )
    phi: Phi = Field(default="delta", description="how the PRM's values of steps become rewards")
    alpha: float = Field(default=0.65, ge=0, le=1, description="share of the outcome, the rest is the PRM's; 1: no PRM")
    alpha_decay: Decay = Field(default="constant", description="over the rounds")
    alpha_floor: float = Field(default=0.2, ge=0, le=1)
    gamma: float = Field(default=0.99, gt=0, le=1, description="of phi paper_mean, and of gae")
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    softmin_temperature: float = Field(default=0.1, gt=0, le=100, description="of phi min_soft")
    clip: float = Field(default=0.2, gt=0, lt=1)
    truncation: float = Field(default=2.0, ge=1, description="largest importance weight")
    sequence_bound: float = Field(
        default=5.0, ge=1, description="paths whose mean importance weight per token is beyond it count for nothing"
    )
    kl_weight: float = Field(
        default=0.0, ge=0, le=100, description="of the KL divergence from the policy after the first SFT; 0: none"
    )
    token_budget: int = Field(default=20_000, ge=512, description="training tokens per epoch")

    def credit(self, round_: int, rounds: int) -> CreditSettings:
        """How rewards become advantages in a round of so many."""
        alpha = alpha_at(round_, self.alpha, self.alpha_decay, self.alpha_floor, rounds)
        return CreditSettings(self.advantage, self.phi, alpha, self.gamma, self.softmin_temperature, self.gae_lambda)


class EvalConfig(_Section):
    """Held-out evaluation without search (method section 7)."""

    samples: int = Field(default=8, ge=1, le=1024, description="paths per problem for pass@1")
    temperature: float = Field(default=0.6, gt=0, le=2)
    greedy: bool = True
    problems: int = Field(default=16, ge=1, description="held-out problems at most")
    train_problems: int = Field(default=0, ge=0, description="training problems that are measured too")
    after_sft: bool = Field(default=False, description="measure the policy between its SFT and its RL too")
    rollback: float = Field(
        default=0.2, ge=0, le=1, description="go back to the best policy where pass@1 is lower by more; 1: never"
    )


class GuardsConfig(_Section):
    """What raises an alarm (method section 5); nothing ends by it."""

    mismatch_kl: float = Field(default=0.1, gt=0, description="nats per token between sampler and learner, at most")
    ess: float = Field(default=0.5, ge=0, le=1, description="effective share of the tokens of an update, at least")
    entropy: float = Field(default=0.02, ge=0, description="of the policy in nats per token, at least")
    holdout_gap: float = Field(
        default=0.3, ge=0, le=1, description="share of programs that pass their suite and fail the tests kept apart"
    )
    duplicates: float = Field(
        default=0.8, ge=0, le=1, description="share of RL's paths that repeat one of their problem"
    )
    drift: float = Field(
        default=0.5, gt=0, description="change of the mean length or steps of RL's paths from a round to the next"
    )

    def bounds(self) -> Bounds:
        return Bounds(**{name: getattr(self, name) for name in type(self).model_fields})


class WandbConfig(_Section):
    """Weights & Biases; `auto` is online where a key is configured, else offline."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    project: str = Field(default="o1coder", min_length=1)


class RunConfig(_Section):
    """Everything that decides a run."""

    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    model: str = Field(default="smollm2-135m", min_length=1, description="alias, directory, or hub id")
    problems: str = Field(default="bundled", min_length=1, description="bundled, mbpp, FILE.jsonl, or a hub id")
    ids: tuple[str, ...] = Field(default=(), description="only these problems; all where empty")
    skip_bad_rows: bool = Field(default=False, description="go on without the bad rows of a problem file, naming each")
    rounds: int = Field(default=1, ge=1, le=10_000)
    patience: int = Field(
        default=0, ge=0, description="rounds without a better held-out pass@1 after which training ends; 0: never"
    )
    engine: EngineConfig = EngineConfig()
    learner: LearnerConfig = LearnerConfig()
    sandbox: SandboxConfig = SandboxConfig()
    tcg: TcgConfig = TcgConfig()
    search: SearchConfig = SearchConfig()
    sft: SftConfig = SftConfig()
    prm: PrmConfig = PrmConfig()
    rl: RlConfig = RlConfig()
    new_data: NewDataConfig = NewDataConfig()
    eval: EvalConfig = EvalConfig()
    guards: GuardsConfig = GuardsConfig()
    wandb: WandbConfig = WandbConfig()

    def search_settings(self) -> SearchSettings:
        """How a problem is searched: a path is no longer than the engine takes."""
        own = {name: getattr(self.search, name) for name in SearchSettings.model_fields}
        longest = self.engine.max_model_len
        return SearchSettings(**{**own, "path_tokens": min(self.search.path_tokens or longest, longest)})

    def dump(self) -> str:
        """The resolved configuration as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load(source: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of a shipped name or YAML file, with overrides such as `search.samples=8`.

    Raises:
        InputError: naming the field, the value and a legal one.
    """
    path = CONFIGS / f"{source}.yaml" if str(source) in shipped() else Path(source)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise InputError("config", str(source), f"one of {', '.join(shipped())} or an existing YAML file") from None
    except (yaml.YAMLError, ValueError, OSError) as error:  # ValueError: not UTF-8, or a date that is none
        raise InputError("config", str(path), "a readable YAML file", " ".join(str(error).split())) from error
    if not isinstance(raw, dict):
        raise InputError("config", str(path), "a YAML mapping of settings", f"holds a {type(raw).__name__}")
    for override in overrides:
        _apply(raw, override)
    return parse(raw)


def parse(raw: dict[str, Any]) -> RunConfig:
    """Raises InputError for the first thing that is wrong."""
    for name, field in _fields():
        # pydantic takes true for 1.
        if field.annotation in (int, float) and isinstance(value := _at(raw, name), bool):
            raise InputError(name, value, _legal(name), "Input should be a number")
    try:
        config = RunConfig.model_validate(raw)
    except ValidationError as error:
        raise _explain(error.errors()[0]) from None
    least = LEAST_STAGE[config.learner.offload]
    if config.learner.zero_stage < least:
        legal = f"{least} to 3" if least < 3 else "3"
        reason = f"learner.offload={config.learner.offload} needs it"
        raise InputError("learner.zero_stage", config.learner.zero_stage, legal, reason)
    return config


def _at(raw: Any, name: str) -> Any:
    """The value that dotted `name` has in `raw`, None where there is none."""
    for part in name.split("."):
        raw = raw.get(part) if isinstance(raw, dict) else None
    return raw


def _apply(raw: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise InputError("override", override, "section.key=value, such as search.samples=8")
    *sections, leaf = key.strip().lstrip("-").split(".")
    place = raw
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise InputError(
                "override", override, "section.key=value, such as search.samples=8", f"{section} is no section"
            )
    try:
        parsed = yaml.safe_load(value)
        if isinstance(parsed, str) and parsed == value.strip():  # in quotes it is meant as text
            parsed = _number(parsed)
        place[leaf] = parsed
    except (yaml.YAMLError, ValueError):  # ValueError: a date that is none
        place[leaf] = value


def _number(text: str) -> str | float:
    # YAML 1.1 reads 3e-5 as text.
    try:
        return float(text)
    except ValueError:
        return text


def _explain(error: Any) -> InputError:
    where = ".".join(str(part) for part in error["loc"])
    value = error.get("input")
    if error["type"] == "extra_forbidden":
        names = list(dict(_fields()))
        siblings = [n for n in names if n.rpartition(".")[0] == where.rpartition(".")[0]]
        close = _closest(where, names, siblings)
        legal = f"{close!r}" if close else f"one of {', '.join(siblings)}"
        return InputError(where, value, legal, "unknown setting")
    return InputError(where or "config", value, _legal(where), error["msg"])


def _closest(where: str, names: Sequence[str], siblings: Sequence[str]) -> str | None:
    """The setting whose last part is most like that of `where`, a sibling before others; None where none is like it."""
    leaf = where.split(".")[-1]
    alike = {name: difflib.SequenceMatcher(None, leaf, name.split(".")[-1]).ratio() for name in names}
    best = max(names, key=lambda name: (alike[name], name in siblings))
    return best if alike[best] >= 0.6 else None


def _fields(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, field in model.model_fields.items():
        annotation = field.annotation
        yield prefix + name, field
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _fields(annotation, f"{prefix}{name}.")


def _legal(where: str) -> str:
    field = dict(_fields()).get(where)
    if field is None:
        parent = dict(_fields()).get(where.rpartition(".")[0])
        return f"a list such as {list(parent.default) or ['1']}" if parent is not None else "a legal value"
    if get_origin(field.annotation) is Literal:
        return "one of " + ", ".join(get_args(field.annotation))
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
        return "a mapping of settings"
    if get_origin(field.annotation) is tuple:
        return "a list such as ['1']"
    kind = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(
        field.annotation, "a value"
    )
    return " ".join([kind, _bounds(field)]).strip() + f", such as {field.default!r}"


def _bounds(field: Any) -> str:
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    return " and ".join(f"{sign} {getattr(m, n)}" for m in field.metadata for n, sign in signs.items() if hasattr(m, n))


def describe() -> str:
    """The page that lists every setting (docs/configuration.md)."""
    lines = [
        "# Configuration",
        "",
        "Settings come from `configs/NAME.yaml` (`--budget NAME`, or a file of your own) and from",
        "`section.key=value` on the command line, which wins. Unknown keys, wrong types and values out of range are",
        "refused before anything starts. `o1coder config` prints the resolved values. Where a cell is empty, a budget",
        "keeps the default. This page is written by `o1coder config --markdown`.",
        "",
    ]
    budgets = [load(name) for name in BUDGETS]
    for title, model, prefix in _sections():
        lines += [
            f"## {title}",
            "",
            *([" ".join((model.__doc__ or "").split()), ""]),
            f"| setting | default | {' | '.join(BUDGETS)} | meaning |",
            "|---|---|" + "---|" * len(BUDGETS) + "---|",
        ]
        for name, field in model.model_fields.items():
            if not _is_section(field):
                bounds = _bounds(field)
                meaning = "; ".join(part for part in (field.description, bounds) if part)
                values = (operator.attrgetter(prefix + name)(budget) for budget in budgets)
                cells = [f"`{value}`" if value != field.default else "" for value in values]
                lines.append(f"| `{prefix}{name}` | `{field.default}` | {' | '.join(cells)} | {meaning} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _sections() -> list[tuple[str, type[BaseModel], str]]:
    own = [(n, f.annotation, f"{n}.") for n, f in RunConfig.model_fields.items() if _is_section(f)]
    return [("run", RunConfig, ""), *own]


def _is_section(field: Any) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
