"""From a model name to a directory: what a directory must hold, and where converted models are kept."""

import json

import pytest

from cluster import models
from cluster.models import resolve
from reasoning.errors import InputError

INDEX = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})
WHOLE = {
    "config.json": json.dumps({"architectures": ["LlamaForCausalLM"]}),
    "model.safetensors": "x",
    "tokenizer.json": "{}",
}
SHARDED = {
    "config.json": WHOLE["config.json"],
    "tokenizer.model": "x",
    "model.safetensors.index.json": INDEX,
    "model-1.safetensors": "x",
    "model-2.safetensors": "x",
}


@pytest.fixture
def model(tmp_path):
    def write(files):
        for name, text in files.items():
            (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path

    return write


@pytest.mark.parametrize("files", [WHOLE, SHARDED], ids=["one file", "shards"])
def test_a_whole_directory_is_taken(model, files):
    path = model(files)
    assert resolve(str(path)) == path


BROKEN = {
    "no config": ({**WHOLE, "config.json": None}, "no config.json"),
    "no JSON": ({**WHOLE, "config.json": "{"}, "no JSON object"),
    "a list": ({**WHOLE, "config.json": "[]"}, "no JSON object"),
    "no architecture": ({**WHOLE, "config.json": "{}"}, "ForCausalLM among its architectures, found none"),
    "an encoder": ({**WHOLE, "config.json": '{"architectures": ["BertForMaskedLM"]}'}, "found BertForMaskedLM"),
    "strange architectures": ({**WHOLE, "config.json": '{"architectures": 3}'}, "found none"),
    "no weights": ({**WHOLE, "model.safetensors": None, "pytorch_model.bin": "x"}, r"no weights (*.safetensors)"),
    "a shard is missing": ({**SHARDED, "model-2.safetensors": None}, "model-2.safetensors is missing"),
    "an index of nothing": ({**SHARDED, "model.safetensors.index.json": "{}"}, "no weight_map"),
    "no tokenizer": ({**WHOLE, "tokenizer.json": None, "tokenizer_config.json": "{}"}, "no tokenizer"),
}


@pytest.mark.parametrize("files, reason", BROKEN.values(), ids=BROKEN)
def test_a_directory_that_lacks_something_is_refused(model, files, reason):
    path = model({name: text for name, text in files.items() if text is not None})
    with pytest.raises(InputError) as caught:
        resolve(str(path))
    error = caught.value
    assert (error.field, error.value) == ("model", str(path))
    assert reason in error.reason
    assert "smollm2-135m" in error.legal
    assert "\n" not in str(error)


def test_what_the_hub_sent_must_be_whole_too(model, monkeypatch):
    path = model({**WHOLE, "config.json": '{"architectures": ["T5Model"]}'})
    monkeypatch.setattr(models, "_from_hub", lambda name: path)
    with pytest.raises(InputError, match=r"model: got 'owner/name'.*found T5Model"):
        resolve("owner/name")


def test_a_name_that_is_too_long_for_a_path():
    with pytest.raises(InputError, match="model: got"):
        resolve("x" * 5000)


@pytest.mark.parametrize("below", ["", "deeper/"])
def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch, below):
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("O1CODER_CACHE", f"{tmp_path}/file/{below}")
    monkeypatch.setattr(models, "_convert", lambda *_: pytest.fail("converted"))
    assert not models.is_converted("smollm2-135m")
    with pytest.raises(InputError, match="use O1CODER_CACHE=DIR with a directory that can be written") as caught:
        resolve("smollm2-135m")
    assert str(tmp_path / "file") in str(caught.value)


def test_a_conversion_that_is_broken_off_leaves_nothing(tmp_path, monkeypatch):
    def convert(source, target):
        (target / "config.json").write_text("{}", encoding="utf-8")
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "_convert", convert)
    with pytest.raises(KeyboardInterrupt):
        resolve("smollm2-135m", cache=tmp_path)
    assert list((tmp_path / "models").iterdir()) == []
