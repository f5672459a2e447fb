"""The generator's part of self-play: what it wrote, rewarded by what its tests tell apart (method section 2)."""

from __future__ import annotations

from collections.abc import Sequence

from reasoning.execution_matrix import normalised
from reasoning.records import Sample, Trajectory

UNREADABLE = -1.0
"""The reward of a case that was asked for and is not there: as much as that of a false test which nothing fails."""


def text_reward(rewards: Sequence[float | None], asked: int) -> float | None:
    """The reward of one text, in [-1, 1]: the mean of those of its tests (`self_play_rewards`), where each of the
    `asked` cases that is missing or cannot be read counts as `UNREADABLE`. Cases beyond them do not count.

    Tests without a reward (the sandbox failed on them) are left out; None where nothing is left.
    """
    mine = list(rewards[:asked]) + [UNREADABLE] * max(0, asked - len(rewards))
    known = [reward for reward in mine if reward is not None]
    return sum(known) / len(known) if known else None


def text_trajectories(
    problem_id: str,
    prompt: Sequence[int],
    samples: Sequence[Sample],
    rewards: Sequence[float | None],
    temperature: float,
) -> list[Trajectory]:
    """What the generator learns from its texts after one prompt: their rewards, normalised over the problem, as the
    advantage of every sampled token. Nothing where all rewards are equal, and none for a text without a reward."""
    found = []
    for sample, reward, advantage in zip(samples, rewards, normalised(rewards), strict=True):
        if reward is None or not advantage:
            continue
        zeros, count = (0.0,) * len(prompt), len(sample.token_ids)
        found.append(
            Trajectory(
                problem_id=problem_id,
                token_ids=(*prompt, *sample.token_ids),
                loss_mask=(*(0 for _ in prompt), *(1 for _ in sample.token_ids)),
                logprobs=(*zeros, *sample.logprobs),
                advantages=(*zeros, *(advantage for _ in range(count))),
                outcome=reward,
                temperature=temperature,
                weight_versions=tuple(sorted({version for version, _, _ in sample.weight_spans})),
            )
        )
    return found
