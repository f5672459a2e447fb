"""The benchmark of quality per token: what it reads from logs, and how it compares."""

import json
from types import SimpleNamespace

import pytest

from benchmarks import quality
from benchmarks.quality import Grown, grown
from reasoning.event_log import Asked, Ended, Told
from reasoning.nodes import Judgement, Outcome
from reasoning.records import Sample
from sandbox import Verdict


def told(expansion, tokens, verdict=None, text="x"):
    judgement = Judgement(verdict, True, 0, 1) if verdict else None
    return Told(expansion, 0, Outcome(Sample((1,) * tokens, (-1.0,) * tokens, text, "stop"), judgement))


def test_a_problem_is_solved_at_the_price_of_all_that_had_begun():
    wrong, right = Verdict.WRONG_ANSWER, Verdict.ACCEPTED
    events = [
        Asked(0, 0, 2), told(0, 10), told(0, 20, wrong), Asked(1, 0, 3), Asked(2, 0, 1),
        Told(1, 2, Outcome(infra_error="lost")), told(1, 5, right, "y"), Asked(3, 0, 1), told(1, 7, right, "y"),
        told(2, 100), told(3, 1000), Ended("token budget", 1.0),
    ]  # fmt: skip
    assert grown("p", events) == Grown("p", solved_at=142, tokens=1142, programs=3, distinct=2)
    assert grown("p", events[:3]).solved_at is None


def test_problems_are_compared_at_the_same_number_of_tokens():
    """Repetitions are averaged problem by problem; what was solved later does not count."""

    def trees(a, b):
        return [Grown("a", a, 90, 2, 2), Grown("mbpp/1", b, 90, 2, 1)]

    puct = [trees(40, None), trees(80, 81)]
    best = [trees(None, 10), trees(None, 20)]
    found = {"puct": puct, "best-of-n": best}
    assert quality.shares(puct, 80) == [1.0, 0.0]
    assert quality.shares(puct, 40) == [0.5, 0.0]
    result = quality.result(found, 80)
    assert result["ratios"] == {"puct_vs_best-of-n": 1.0}
    assert set(result["groups"]) == {"all", "bundled", "mbpp"}
    whole = result["groups"]["all"]
    assert whole["problems"] == 2
    assert whole["puct"]["solved"] == "1 1"
    assert whole["puct"]["solved_share"]["40"][0] == 0.25
    assert whole["puct"]["vs_best_of_n"]["40"][0] == pytest.approx(0.25 - 0.5)
    assert result["groups"]["bundled"]["puct"]["vs_best_of_n"]["80"][0] == 1.0
    assert "vs_best_of_n" not in whole["best-of-n"]
    kept = quality.recorded(found)
    assert kept["problems"] == "a mbpp/1"
    assert kept["puct"][0] == {"solved_at": "40 -", "tokens": "90 90", "programs": "2 2", "distinct": "2 1"}
    assert quality.read_back(json.loads(json.dumps(kept))) == found
    table = quality.table({**result, "tokens": 80})
    assert "puct" in table and "2 problems" in table and "+100.0 % [" in table


def test_the_problems_of_mbpp_are_the_first_of_its_test_split(tmp_path):
    def row(number):
        tests = [f"assert f({n}) == {n}" for n in range(3)]
        return {"task_id": number, "text": "q", "code": "def f(x):\n    return x", "test_list": tests}

    rows = [row(n) for n in (700, 3, 12, 11)] + [{**row(13), "test_list": []}]
    lines, whole = tmp_path / "mbpp.jsonl", tmp_path / "sanitized.json"
    lines.write_text("".join(json.dumps(r) + "\n" for r in rows))
    whole.write_text(json.dumps(rows))
    for path in (lines, whole):
        assert [p.id for p in quality.mbpp(path)] == ["mbpp/11", "mbpp/12", "mbpp/700"]


def test_repetitions_are_added_to_a_result_of_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "FOLDER", tmp_path)
    problems = [SimpleNamespace(id="a"), SimpleNamespace(id="mbpp/1")]
    with pytest.raises(SystemExit, match="does not exist; run without --add"):
        quality.kept_trees(problems, 80)
    trees = {"puct": [[Grown("a", None, 90, 2, 2), Grown("mbpp/1", 7, 90, 1, 1)]]}
    (tmp_path / "quality.json").write_text(json.dumps({"tokens": 80, "trees": quality.recorded(trees)}))
    assert quality.kept_trees(problems, 80) == trees
    for others, tokens in ((problems, 90), (problems[:1], 80)):
        with pytest.raises(SystemExit, match="is of 80 tokens and 2 problems; use the same"):
            quality.kept_trees(others, tokens)
