"""The test case generator alone through the command line: trained, interrupted, gone on with, used, and reported on."""

from __future__ import annotations

import json
import signal

import pytest
from started import Started

from cluster.store import ProcessDataStore
from cluster.tcg_report import TcgReport
from reasoning.problems import bundled
from reasoning.records import GeneratedText, Origin

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(1500)]

SMALL = ("tcg.measure_problems=3", "tcg.mutants=6", "wandb.mode=offline", "sandbox.workers=1")


def some_ids() -> list[str]:
    problems = bundled()
    train = [p.id for p in problems if p.split == "train"][:6]
    return [*train, *[p.id for p in problems if p.split == "heldout"][:3]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A generator that was trained with self-play and adapters, interrupted in its training and gone on with."""
    run_dir = tmp_path_factory.mktemp("tcg") / "run"
    # Enough of it that the generator writes what can be read.
    learning = ("tcg.lora_rank=8", "tcg.learning_rate=0.003", "tcg.sft_completions=6", "tcg.sft_epochs=2")
    settings = ("tcg.self_play=true", "tcg.self_play_prompts=3", "tcg.dpo_pairs=6", *learning, *SMALL)
    first = Started("tcg", "train", "--budget", "tiny", "--run-dir", str(run_dir), "--ids", *some_ids(), *settings)
    first.until_says(r"tcg: started", 400)
    first.process.send_signal(signal.SIGTERM)
    first.until_end(120)
    second = Started("tcg", "train", "--resume", str(run_dir))
    second.until_end(900)
    return run_dir, first, second


def metrics(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_an_interrupted_training_goes_on_to_its_report(trained):
    run_dir, first, second = trained
    assert first.process.returncode == 130, first.output
    assert first.left_behind(5) == []
    assert second.process.returncode == 0, second.output
    assert second.left_behind(5) == []
    report = TcgReport.model_validate(json.loads((run_dir / "report.json").read_text()))
    assert [(a.step, a.mode) for a in report.accuracy] == [
        (step, mode) for step in ("SFT", "DPO", "self-play") for mode in ("reference", "question_only")
    ]
    assert all(0 <= a.right <= a.valid <= a.cases <= a.asked for a in report.accuracy)
    assert report.rows[-1].suites == 3
    assert "Test case generator" in second.output and "Suites by difficulty" in second.output
    assert (run_dir / "report.html").read_text().count("<svg") == 2


def test_each_step_left_its_checkpoint_and_its_metrics(trained):
    run_dir, _, _ = trained
    for name in ("tcg-sft-round-1", "tcg-round-1", "tcg-self-play-round-1"):
        assert (run_dir / "checkpoints" / name / "config.json").exists()
    rows = metrics(run_dir)
    for name in ("tcg_sft/loss", "tcg_dpo/margin", "tcg_dpo/chosen_logprob_change", "tcg_rl/mismatch_kl"):
        assert any(name in row and "learner/step" in row for row in rows), name
    last = {name: value for row in rows for name, value in row.items()}
    assert -1 <= last["tcg/self_play_reward"] <= 1
    assert last["tcg/suites"] == 3 and 0 < last["tcg/sandbox_busy"] <= 1
    assert any(name.startswith("tcg_difficulty/") for name in last)
    assert list((run_dir / "data" / "reference_logprobs").glob("*.json"))


def test_adapters_are_merged_into_what_is_kept(trained):
    from safetensors import safe_open

    run_dir, _, _ = trained
    files = list((run_dir / "checkpoints" / "tcg-round-1").glob("*.safetensors"))
    names = [name for file in files for name in safe_open(file, "pt").keys()]  # noqa: SIM118
    assert names and not any("lora" in name or "base_layer" in name for name in names)


def test_suites_of_problems_without_references(trained, tmp_path):
    """The generator that was trained, on problems that keep their references to themselves."""
    run_dir, _, _ = trained
    problems = [p.model_copy(update={"references": ()}) for p in bundled() if p.split == "heldout"][:3]
    file = tmp_path / "p.jsonl"
    file.write_text("".join(p.model_dump_json() + "\n" for p in problems))
    generator = str(run_dir / "checkpoints" / "tcg-round-1")
    place = tmp_path / "run"
    run = Started(
        "tcg", "generate", "--budget", "tiny", "--mode", "question_only", "--generator", generator,
        "--problems", str(file), "--run-dir", str(place), "tcg.policy_samples=4", "tcg.prompts=2", *SMALL,
    )  # fmt: skip
    run.until_end(600)
    assert run.process.returncode == 0, run.output
    store = ProcessDataStore(place / "data")
    texts = store.read_records("generated", "round-1", GeneratedText)
    assert len(texts) == 6 and all(t.text or t.lost for t in texts)
    suites = store.read_suites("current")
    assert [s.problem_id for s in suites] == [p.id for p in problems]
    for suite in suites:
        made = [t for t in suite.tests if t.origin is not Origin.GIVEN]
        assert {t.origin for t in made} <= {Origin.CONSENSUS}
        assert suite.accepted or suite.reason
    again = Started("tcg", "report", str(place))
    again.until_end(60)
    assert again.process.returncode == 0 and "tcg.html" in again.output
