"""The tokenizer of a model directory, as the two functions that the rest needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reasoning.prompts import Message


@dataclass(frozen=True, slots=True)
class Tokens:
    """`encode` adds no special tokens; `encode_chat` ends where the assistant's answer begins."""

    tokenizer: Any

    @classmethod
    def load(cls, model: Path) -> Tokens:
        """Raises OSError where the directory holds no tokenizer."""
        from transformers import AutoTokenizer

        return cls(AutoTokenizer.from_pretrained(model))

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def encode_chat(self, messages: list[Message]) -> list[int]:
        if self.tokenizer.chat_template:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        else:  # a base model: plain turns
            text = "".join(f"### {m['role']}\n{m['content']}\n\n" for m in messages) + "### assistant\n"
        return self.encode(text)

    def decode(self, ids: list[int] | tuple[int, ...]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    @property
    def end_ids(self) -> list[int]:
        """What ends a completion that has no end marker of its own."""
        end = self.tokenizer.eos_token_id
        return [] if end is None else [int(end)]

    @property
    def pad_id(self) -> int:
        return int(self.tokenizer.pad_token_id or self.tokenizer.eos_token_id or 0)
