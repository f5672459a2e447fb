"""The configuration: every wrong input ends in one InputError that names field, value and a legal one."""

import pytest
import yaml

from cluster import config as configuration
from cluster.config import CONFIGS, RunConfig, describe, load, parse
from reasoning.errors import InputError
from reasoning.search import SearchSettings


def refused(*overrides, source="tiny"):
    with pytest.raises(InputError) as caught:
        load(source, overrides)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_configuration_loads_and_comes_back(path, tmp_path):
    config = load(path)
    assert load(path.stem) == config
    copy = tmp_path / "config.yaml"
    copy.write_text(config.dump(), encoding="utf-8")
    assert load(copy) == config
    assert parse(config.model_dump(mode="json")) == config


def test_the_budgets_are_shipped():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} >= set(configuration.BUDGETS)


def test_an_empty_file_is_all_defaults(tmp_path):
    (tmp_path / "c.yaml").write_text("", encoding="utf-8")
    assert load(tmp_path / "c.yaml") == RunConfig()


@pytest.mark.parametrize(
    "override, name, value",
    [
        ("sft.learning_rate=3e-5", "sft.learning_rate", 3e-5),
        ("sft.learning_rate=0.001", "sft.learning_rate", 1e-3),
        ("search.token_budget=4e3", "search.token_budget", 4000),
        ("--seed=7", "seed", 7),
        (" search.samples = 8", "search.samples", 8),
        ("eval.greedy=false", "eval.greedy", False),
        ("rl.gamma=1", "rl.gamma", 1.0),
        ("ids=['601', 'mbpp/602']", "ids", ("601", "mbpp/602")),
        ("model=Qwen/Qwen2.5-Coder-0.5B-Instruct", "model", "Qwen/Qwen2.5-Coder-0.5B-Instruct"),
        ('model="123"', "model", "123"),
        ("problems=~/my=problems.jsonl", "problems", "~/my=problems.jsonl"),
        ("wandb.project=2024-13-45", "wandb.project", "2024-13-45"),
        ("wandb.project=a: b: c", "wandb.project", "a: b: c"),
    ],
)
def test_overrides(override, name, value):
    found = load("tiny", [override])
    for part in name.split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value)


def test_the_last_override_wins_and_the_rest_stays():
    config = load("tiny", ["seed=1", "search.samples=2", "seed=3"])
    assert (config.seed, config.search.samples) == (3, 2)
    assert config.model_copy(update={"seed": 0, "search": load("tiny").search}) == load("tiny")


@pytest.mark.parametrize(
    "override, field, suggestion",
    [
        ("search.sampels=8", "search.sampels", "use 'search.samples'"),
        ("sead=1", "sead", "use 'seed'"),
        ("serch.samples=8", "serch", "use 'search'"),
        ("learning_rat=1e-5", "learning_rat", "learning_rate'"),
        ("zzzzzz=1", "zzzzzz", "use one of seed, model, problems"),
        ("engine.zzzzzz=1", "engine.zzzzzz", "use one of engine.max_model_len"),
    ],
)
def test_misspelt_settings_get_a_suggestion(override, field, suggestion):
    error = refused(override)
    assert error.field == field
    assert "unknown setting" in str(error)
    assert suggestion in str(error)


@pytest.mark.parametrize(
    "override, field, legal",
    [
        ("seed=abc", "seed", "a whole number >= 0"),
        ("seed=1.5", "seed", "a whole number"),
        ("seed=true", "seed", "a whole number"),
        ("rounds=yes", "rounds", "a whole number >= 1"),
        ("search.temperature=true", "search.temperature", "a number > 0 and <= 2"),
        ("seed=", "seed", "a whole number"),
        ("seed=[1]", "seed", "a whole number"),
        ("sft.learning_rate=fast", "sft.learning_rate", "a number > 0 and < 1, such as 0.0001"),
        ("eval.greedy=maybe", "eval.greedy", "true or false"),
        ("model=123", "model", "text, such as 'smollm2-135m'"),
        ("ids=601", "ids", "a list such as ['1']"),
        ("ids=[601]", "ids.0", "a list such as ['1']"),
        ("search=5", "search", "a mapping of settings"),
        ("wandb.mode=maybe", "wandb.mode", "one of auto, online, offline, disabled"),
    ],
)
def test_wrong_types(override, field, legal):
    error = refused(override)
    assert error.field == field
    assert legal in error.legal


@pytest.mark.parametrize(
    "override, legal",
    [
        ("seed=-1", ">= 0"),
        ("seed=2147483648", "<= 2147483647"),
        ("seed=99999999999999999999999", "<= 2147483647"),
        ("search.samples=0", ">= 1 and <= 64"),
        ("search.temperature=0", "> 0 and <= 2"),
        ("sft.learning_rate=1", "> 0 and < 1"),
        ("sft.learning_rate=.nan", "> 0 and < 1"),
        ("sft.learning_rate=-.inf", "> 0 and < 1"),
        ("learner.zero_stage=4", ">= 0 and <= 3"),
        ("rl.group=1", ">= 2"),
        ("search.top_p=1.01", "> 0 and <= 1"),
        ("model=''", "text"),
    ],
)
def test_out_of_range(override, legal):
    name, _, value = override.partition("=")
    error = refused(override)
    assert error.field == name
    assert legal in error.legal
    assert str(error).startswith(f"{name}: got {yaml.safe_load(value)!r}")


@pytest.mark.parametrize("offload, stage", [("optimizer", 0), ("weights", 2)])
def test_offload_needs_a_zero_stage(offload, stage):
    error = refused(f"learner.offload={offload}", f"learner.zero_stage={stage}")
    assert (error.field, error.value) == ("learner.zero_stage", stage) and f"learner.offload={offload}" in str(error)
    assert load("tiny", [f"learner.offload={offload}", "learner.zero_stage=3"]).learner.offload == offload


@pytest.mark.parametrize("override", ["search.samples", "=3", "", "search.samples.more=1"])
def test_what_is_no_override(override):
    error = refused(override)
    assert (error.field, error.value) == ("override", override)
    assert "search.samples=8" in error.legal


BAD_FILES = {
    "no YAML": (b"seed: [", "a readable YAML file"),
    "a list": (b"- seed", "a YAML mapping"),
    "text": (b"seed", "a YAML mapping"),
    "control characters": (b"\x00", "a readable YAML file"),
    "not UTF-8": (b"model: \xe9", "a readable YAML file"),
    "a date that is none": (b"seed: 2024-13-45", "a readable YAML file"),
    "a tag": (b"seed: !!python/object:os.system x", "a readable YAML file"),
    "a number as a key": (b"1: 2", "a legal value"),
    "an empty section": (b"search:", "a mapping of settings"),
    "a deep mistake": (b"search:\n  samples: many", "a whole number"),
}


@pytest.mark.parametrize("content, legal", BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files(tmp_path, content, legal):
    (tmp_path / "c.yaml").write_bytes(content)
    assert legal in refused(source=tmp_path / "c.yaml").legal


def test_missing_files(tmp_path):
    error = refused(source="lptop")
    assert (error.field, error.value) == ("config", "lptop")
    assert "tiny, laptop" in error.legal
    assert "existing YAML file" in refused(source=tmp_path / "none.yaml").legal
    assert "readable" in refused(source=tmp_path).legal


def test_the_search_settings_are_those_of_the_method():
    config = load("tiny", ["search.samples=3", "search.problems=5", "engine.max_model_len=1000"])
    own = {name: getattr(config.search, name) for name in SearchSettings.model_fields}
    assert config.search_settings() == SearchSettings(**{**own, "path_tokens": 1000})
    assert load("tiny", ["search.path_tokens=500"]).search_settings().path_tokens == 500
    assert load("tiny", ["search.path_tokens=9000"]).search_settings().path_tokens == 2048
    assert config.sandbox.limits().cpu_s == config.sandbox.cpu_s
    assert config.sandbox.limits().memory_mb == config.sandbox.memory_mb


def test_the_page_of_settings_names_every_one():
    page = describe()

    def names(model, prefix=""):
        for name, field in model.model_fields.items():
            inner = field.annotation
            if hasattr(inner, "model_fields"):
                yield from names(inner, f"{name}.")
            else:
                yield prefix + name

    missing = [name for name in names(RunConfig) if f"| `{name}` |" not in page]
    assert not missing


def test_the_page_that_ships_is_the_one_that_would_be_written():
    assert (CONFIGS.parent / "docs" / "configuration.md").read_text(encoding="utf-8") == describe()
