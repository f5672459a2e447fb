"""Files for tests of the command line (problems, a directory that looks like a model), and how bad input must end."""

import json

from made_records import PROBLEM_ROW
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

WRONG = {**PROBLEM_ROW, "id": "mine/wrong", "references": ["def double(n):\n    return n\n"]}
TWO = [PROBLEM_ROW, {**PROBLEM_ROW, "id": "mine/other"}]
TOKENIZER = Tokenizer(WordLevel({"?": 0, "def": 1}, unk_token="?"))
MODEL = {
    "model/config.json": '{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}',
    "model/model.safetensors": "x",
    "model/tokenizer.json": TOKENIZER.to_str(),
    "model/tokenizer_config.json": '{"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "?"}',
}


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")


def lines(*rows):
    return "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows)


def one_line(error, *says):
    assert error.startswith("o1coder: ")
    assert error.count("\n") == 1, error
    for part in says:
        assert part in error
