"""The contract with vLLM, on the real engine: ids, log-probabilities, stop strings, weights replaced in flight."""

from __future__ import annotations

import asyncio
import dataclasses
import subprocess
import sys

import psutil
import pytest

from actors.engine import Engine, EngineSettings
from actors.sampling import Draw, EngineDeadError, EngineError
from actors.tokens import Tokens
from cluster.weight_sync import judge_probe, mean_difference

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]

PROMPT = [{"role": "user", "content": "Write a Python function that adds two numbers."}]


class Running:
    """An engine with its own event loop, so that tests are plain functions."""

    def __init__(self, model):
        self.loop = asyncio.new_event_loop()
        self.model = model
        self.tokens = Tokens.load(model)
        self.engine = Engine(model, EngineSettings(max_num_seqs=16, max_model_len=1024))
        self.do(self.engine.start())

    def do(self, work):
        return self.loop.run_until_complete(asyncio.wait_for(work, 240))

    @property
    def prompt(self):
        return self.tokens.encode_chat(PROMPT)


@pytest.fixture(scope="module")
def running(model):
    running = Running(model)
    yield running
    folder = running.engine.sockets.path
    assert any(folder.iterdir())
    running.do(running.engine.shutdown())
    assert not folder.exists(), "no socket is left"
    running.loop.close()


@pytest.fixture(scope="module")
def perturbed(model, tmp_path_factory):
    """Copies of the model with one part corrupted each: name -> directory."""
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    parts = {
        "mlp": "model.layers.14.mlp.down_proj.weight",
        "attention": "model.layers.14.self_attn.o_proj.weight",
        "embedding": "model.embed_tokens.weight",
    }
    made = {}
    for name, key in parts.items():
        torch.manual_seed(0)
        changed = dict(weights)
        changed[key] = changed[key][torch.randperm(len(changed[key]))].contiguous()
        made[name] = tmp_path_factory.mktemp(name) / "weights.safetensors"
        save_file(changed, made[name])
    return made


def test_a_sample_is_ids_with_their_log_probabilities_and_keeps_its_stop_string(running):
    sample = running.do(running.engine.draw(running.prompt, Draw(200, temperature=0.8, stop=("def ",))))
    assert len(sample.token_ids) == len(sample.logprobs) > 0
    assert all(value <= 0 for value in sample.logprobs)
    assert sample.text == running.tokens.decode(sample.token_ids)[: len(sample.text)]
    if sample.finish == "stop" and "def " in sample.text:
        assert sample.text.endswith("def ")
    assert [span[1:] for span in sample.weight_spans] == [(0, len(sample.token_ids))]


def test_the_length_limit_is_told(running):
    sample = running.do(running.engine.draw(running.prompt, Draw(3)))
    assert (sample.finish, len(sample.token_ids)) == ("length", 3)


def test_greedy_text_is_the_same_with_and_without_the_prefix_cache(running):
    first = running.do(running.engine.draw(running.prompt, Draw(40, greedy=True)))
    cached = running.do(running.engine.draw(running.prompt, Draw(40, greedy=True)))
    assert first.token_ids == cached.token_ids


def test_choice_is_a_distribution_over_the_offered_tokens(running):
    ids = running.tokens.encode("23")
    found = running.do(running.engine.choose(running.prompt, ids))
    assert set(found) == set(ids)
    import math

    assert sum(math.exp(v) for v in found.values()) == pytest.approx(1.0, abs=1e-3)


def test_many_draws_run_together(running):
    async def many():
        return await asyncio.gather(*[running.engine.draw(running.prompt, Draw(20)) for _ in range(40)])

    assert len(running.do(many())) == 40
    assert running.engine.running == 0


def test_a_prompt_without_room_is_an_engine_error(running):
    with pytest.raises(EngineError, match="max_model_len"):
        running.do(running.engine.draw([1] * 1024, Draw(5)))


def test_a_request_that_takes_too_long_is_given_up(running):
    settings = running.engine.settings
    running.engine.settings = dataclasses.replace(settings, request_deadline_s=0.05)
    with pytest.raises(EngineError, match="no answer within 0"):
        running.do(running.engine.fill(running.prompt, 400, 1.0))
    running.engine.settings = settings
    assert running.engine.running == 0
    assert running.do(running.engine.fill(running.prompt, 5, 1.0)) == 5


def test_a_sample_that_the_engine_broke_off_is_none(running):
    async def work():
        drawn = asyncio.create_task(running.engine.draw(running.prompt, Draw(400, 1.0, 1.0, ("nowhere",), False)))
        await asyncio.sleep(0.2)
        last = f"r{next(running.engine._ids) - 1}"
        await running.engine._llm.abort(last)
        return await drawn

    with pytest.raises(EngineError, match="broke a sample off: abort"):
        running.do(work())
    assert running.engine.running == 0


def test_weights_of_another_version_find_nothing_in_the_cache(running):
    def cached():
        before = running.engine.cached_tokens
        running.do(running.engine.fill(prompt, 1, 1.0))
        return running.engine.cached_tokens - before

    prompt = running.prompt * 12
    version = running.engine.version
    cached()
    assert cached() > 0
    running.engine.version = version + 1000
    assert cached() == 0
    assert cached() > 0
    running.engine.version = version


def test_scores_agree_with_transformers(running, model):
    import torch
    from transformers import AutoModelForCausalLM

    ids = running.tokens.encode("def add(a, b):\n    return a + b\n\nprint(add(1, 2))\n")
    seen = running.do(running.engine.score(ids))
    lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        logp = lm(torch.tensor([ids])).logits[0, :-1].float().log_softmax(-1)
    expected = logp.gather(-1, torch.tensor(ids[1:]).unsqueeze(-1)).squeeze(-1).tolist()
    assert mean_difference([seen], [expected]) < 0.15


def test_weights_are_replaced_under_running_requests_and_restored(running, model, perturbed):
    before = running.do(running.engine.draw(running.prompt, Draw(40, greedy=True)))
    start = running.engine.version

    async def swap_while_running():
        work = [asyncio.create_task(running.engine.draw(running.prompt, Draw(150))) for _ in range(6)]
        await asyncio.sleep(0.7)
        seconds = await running.engine.update_weights(perturbed["mlp"], start + 1)
        return seconds, await asyncio.gather(*work)

    seconds, samples = running.do(swap_while_running())
    assert seconds < 10
    assert len(samples) == 6
    crossing = [s for s in samples if len(s.weight_spans) == 2]
    assert crossing, "no request ran through the update"
    for sample in crossing:
        (old, begin, middle), (new, same, end) = sample.weight_spans
        assert (old, new, begin, same, end) == (start, start + 1, 0, middle, len(sample.token_ids))
    changed = running.do(running.engine.draw(running.prompt, Draw(40, greedy=True)))
    assert changed.token_ids != before.token_ids
    running.do(running.engine.update_weights(model, start + 2))
    restored = running.do(running.engine.draw(running.prompt, Draw(40, greedy=True)))
    assert restored.token_ids == before.token_ids


@pytest.mark.parametrize("part", ["mlp", "attention", "embedding"])
def test_the_probe_catches_one_corrupted_layer(running, model, perturbed, part):
    """The learner says one thing, the engine serves weights with one layer wrong: the sync must be refused."""
    probe = running.tokens.encode("def add(a, b):\n    return a + b\n\nfor i in range(10):\n    print(add(i, 1))\n")
    right = running.do(running.engine.score(probe))
    running.do(running.engine.update_weights(perturbed[part], running.engine.version + 1))
    served = running.do(running.engine.score(probe))
    running.do(running.engine.update_weights(model, running.engine.version + 1))
    back = running.do(running.engine.score(probe))
    off = mean_difference([served], [right])
    assert judge_probe(off, 0.0, 0.0, 0.15), f"difference of {off:.3f} went unnoticed"
    assert not judge_probe(mean_difference([back], [right]), 0.0, 0.0, 0.15)


def test_a_failed_update_leaves_the_engine_serving(running, model, tmp_path):
    from actors.weight_transfer import WeightSyncError

    with pytest.raises(WeightSyncError):
        running.do(running.engine.update_weights(tmp_path / "absent.safetensors", 999))
    running.do(running.engine.update_weights(model, running.engine.version + 1))
    assert running.do(running.engine.draw(running.prompt, Draw(5))).token_ids


def test_an_engine_whose_owner_is_killed_leaves_no_process(model):
    script = f"""
import asyncio, pathlib, psutil
from actors.engine import Engine, EngineSettings
async def main():
    engine = Engine(pathlib.Path({str(model)!r}), EngineSettings(max_num_seqs=4, max_model_len=512))
    await engine.start()
    print("pids", *(p.pid for p in psutil.Process().children(recursive=True)), flush=True)
    await asyncio.sleep(600)
if __name__ == "__main__":
    asyncio.run(main())
"""
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        line = next(line for line in owner.stdout if line.startswith("pids"))  # vLLM prints too
        children = [psutil.Process(int(pid)) for pid in line.split()[1:]]
        assert any("VLLM" in " ".join(p.cmdline()) for p in children)
    finally:
        owner.kill()
        owner.wait(30)
    alive = psutil.wait_procs(children, timeout=30)[1]
    assert not [p.cmdline() for p in alive]


def test_an_engine_that_vllm_calls_dead_is_told_from_one_that_failed(tmp_path):
    from vllm.v1.engine.exceptions import EngineDeadError as VllmEngineDeadError
    from vllm.v1.engine.exceptions import EngineGenerateError

    class Llm:
        def __init__(self, error):
            self.error = error

        async def generate(self, prompt, params, request):
            raise self.error
            yield

    def raised(error):
        engine = Engine(tmp_path, EngineSettings())
        engine._llm = Llm(error)
        with pytest.raises(EngineError) as caught:
            asyncio.run(engine.draw([1], Draw(4)))
        return caught.type

    assert raised(VllmEngineDeadError()) is EngineDeadError
    assert raised(EngineGenerateError()) is EngineError
