"""RL stages without actors: what the learner is given, and what is skipped."""

from types import SimpleNamespace

import pytest

from cluster import stage_rl
from cluster.config import load
from reasoning.records import Action, Path, StepRecord
from sandbox import Verdict


def path(problem, index, value, compiles=True):
    steps = tuple(
        StepRecord(
            action=action,
            header_ids=(9,),
            token_ids=(100 + index, 5),
            logprobs=(-0.5, -0.5),
            text="",
            weight_spans=((0, 0, 2),),
        )
        for action in (Action.DEFINE, Action.CODE)
    )
    return Path(
        problem_id=problem,
        tree_id=f"{problem}/{index}",
        prompt_ids=(1, 2),
        steps=steps,
        program="x = 1\n",
        verdict=Verdict.ACCEPTED if value == 1 else Verdict.WRONG_ANSWER,
        compiles=compiles,
        value=value,
    )


PATHS = [path("p", 0, 1.0), path("p", 1, 0.1), path("p", 2, 0.4), path("q", 3, 1.0)]


class Learner:
    """Notes what it is asked; a value model says of a state how long it is, in hundredths."""

    def __init__(self):
        self.loaded = []

    def load(self, spec, seed):
        self.loaded.append((spec.model, spec.kind))

    def step_scores(self, labels, settings, deadline_s):
        return [[end / 100 for end in label.ends] for label in labels]

    def token_logprobs(self, trajectories, settings, deadline_s):
        return [[-1.0] * sum(t.loss_mask) for t in trajectories]


@pytest.fixture
def run(tmp_path):
    """`fits`: objective, data, name in the metrics, options."""

    def made(state=(), **rl):
        fits, guarded = [], []

        def fit(objective, data, settings, round_, family="", **options):
            fits.append((objective, data, family, options))
            return [{"dpo/margin": 0.1, "rl/mismatch_kl": 0.0, "rl/ess": 1.0, "rl/entropy": 2.0}]

        config = load("tiny", [f"rl.{name}={value}" for name, value in rl.items()])
        return SimpleNamespace(
            config=config,
            state=dict(state),
            policy=tmp_path / "policy",
            model=tmp_path / "base",
            dir=SimpleNamespace(path=tmp_path),
            store=SimpleNamespace(write_records=lambda *_: None),
            workers=SimpleNamespace(learner=Learner()),
            spec=lambda model, kind, rate: SimpleNamespace(model=str(model), kind=kind),
            fit_settings=lambda *_: None,
            log=lambda *_: None,
            guard=lambda now, *_: guarded.append(now),
            guarded=guarded,
            fit=fit,
            fits=fits,
        )

    return made


def test_paths_that_pass_are_preferred_to_the_worst_of_their_problem(run):
    made = run(algorithm="dpo", beta=0.2, sibling_pairs=0)
    assert stage_rl._by_preference(made, 1, PATHS)["pairs"] == 1
    ((objective, (pair,), family, options),) = made.fits
    assert (objective, family, options["beta"]) == ("dpo", "rl", 0.2)
    assert (pair.chosen.token_ids[3], pair.rejected.token_ids[3]) == (100, 101)
    assert pair.chosen.loss_mask == (0, 0, 0, 1, 1, 0, 1, 1)


def test_steps_of_search_are_preferred_to_their_siblings(run, monkeypatch):
    def found(index, passed):
        whole = path("p", index, 1.0)
        return whole.model_copy(
            update={"tree_id": "t", "steps": (whole.steps[0].model_copy(update={"passed": passed, "sampled": 8.0}),)}
        )

    monkeypatch.setattr(stage_rl, "search_paths", lambda _: [found(0, 8.0), found(1, 0.0)])
    made = run(algorithm="dpo", sibling_pairs=4)
    assert stage_rl._by_preference(made, 1, [])["pairs"] == 1
    ((_, (pair,), _, _),) = made.fits
    assert (pair.chosen.token_ids, pair.rejected.token_ids) == ((1, 2, 9, 100, 5), (1, 2, 9, 101, 5))
    assert pair.chosen.loss_mask == pair.rejected.loss_mask == (0, 0, 0, 1, 1)


@pytest.mark.parametrize("algorithm", ["policy_gradient", "dpo"])
def test_paths_over_the_limit_are_left_out_and_counted(run, algorithm):
    made = run(algorithm=algorithm, sibling_pairs=0)
    learn = {"policy_gradient": stage_rl._by_gradient, "dpo": stage_rl._by_preference}[algorithm]
    longest = made.config.learner.max_tokens
    huge = PATHS[1].model_copy(update={"prompt_ids": (1,) * longest})
    others = [PATHS[0], PATHS[2], path("r", 4, 1.0), path("r", 5, 0.1)]
    result = learn(made, 1, [*others, huge])
    ((_, data, _, _),) = made.fits
    assert result["too_long"] == 1
    texts = [[x.chosen, x.rejected] if algorithm == "dpo" else [x] for x in data]
    assert texts and all(len(text.token_ids) <= longest for some in texts for text in some)


def test_without_a_pair_there_is_nothing_to_prefer(run):
    made = run(algorithm="dpo", sibling_pairs=0)
    assert "among 2" in stage_rl._by_preference(made, 1, PATHS[1:3])["skipped"] and not made.fits


def test_without_a_reward_model_outcomes_alone_decide(run):
    made = run()
    stage_rl._by_gradient(made, 1, PATHS)
    ((_, trajectories, _, options),) = made.fits
    assert {t.token_ids[3]: t.advantages[3] for t in trajectories} == pytest.approx({100: 0.75, 101: -0.6, 102: -0.15})
    assert all(not t.reference_logprobs for t in trajectories) and options["kl_weight"] == 0
    assert made.workers.learner.loaded == [(str(made.policy), "policy")]
    assert made.guarded == [{"mismatch_kl": 0.0, "ess": 1.0, "entropy": 2.0}]


def test_paths_of_an_interrupted_attempt_are_drawn_once(run, tmp_path, monkeypatch):
    made, drawn, kept = run(), [], {}
    monkeypatch.setattr(stage_rl, "_sample_groups", lambda *_: drawn.append(1) or PATHS)
    made.store.write_paths = kept.__setitem__
    made.store.read_paths = lambda shards: kept[shards[0]]
    made.dir.write_state = lambda state: None
    for _ in range(2):
        assert stage_rl._drawn(made, 1) == PATHS
    assert len(drawn) == 1
    stage_rl._drawn(made, 2)
    made.config = load("tiny", ["rl.group=2"])
    stage_rl._drawn(made, 2)
    made.policy.mkdir()
    (made.policy / "model.safetensors").write_text("other weights")
    stage_rl._drawn(made, 2)
    assert len(drawn) == 4


def test_paths_are_compared_with_those_of_the_round_before(run, tmp_path):
    made, logged = run(), []
    short = [path.model_copy(update={"steps": path.steps[:1]}) for path in PATHS]
    made.dir.data = tmp_path
    made.log = lambda metrics, round_: logged.append(metrics)
    made.guard = lambda now, round_, before: made.guarded.append((now, before))
    made.store.read_paths = lambda shards: short if shards == ["rl-round-1"] else []
    stage_rl._look_at(made, 2, PATHS)
    (tmp_path / "paths").mkdir()
    (tmp_path / "paths" / "rl-round-1.parquet").touch()
    stage_rl._look_at(made, 2, PATHS)
    (now, nothing), (again, before) = made.guarded
    assert (nothing, again) == ({}, now)
    assert before["path_steps"] == 1.0 < now["path_steps"] == logged[0]["guard/path_steps"]


def test_a_refused_reward_model_is_not_asked(run):
    made = run(state={"prm": None})
    stage_rl._by_gradient(made, 1, PATHS)
    assert [kind for _, kind in made.workers.learner.loaded] == ["policy"]


def test_a_critic_is_asked_before_the_first_step_and_after_each(run, tmp_path):
    made = run(state={"critic": "checkpoints/critic-round-1"}, advantage="gae", gamma=1.0, gae_lambda=1.0)
    stage_rl._by_gradient(made, 2, PATHS[:2])
    assert made.workers.learner.loaded[0] == (str(tmp_path / "checkpoints/critic-round-1"), "value")
    ((_, trajectories, _, _),) = made.fits
    # V_0 after two tokens of the prompt, V_1 after three more.
    assert trajectories[0].advantages[3] == pytest.approx(1.0 - 0.01)
    assert trajectories[0].advantages[6] == pytest.approx(1.0 - 0.04)


def test_the_reference_is_the_policy_after_the_first_sft(run, tmp_path):
    made = run(state={"reference": "checkpoints/policy-round-1-sft"}, kl_weight=0.1)
    stage_rl._by_gradient(made, 2, PATHS)
    assert made.workers.learner.loaded[0] == (str(tmp_path / "checkpoints/policy-round-1-sft"), "policy")
    ((_, trajectories, _, _),) = made.fits
    assert trajectories[0].reference_logprobs == (0, 0, 0, -1, -1, 0, -1, -1)
