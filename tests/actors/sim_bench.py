"""What tests of the simulation share."""

import asyncio

from actors.sampling import Draw, EngineError
from actors.simulation import (
    SimEngine,
    SimPolicy,
)
from reasoning.records import Action, ProblemTest
from reasoning.steps import STOPS
from sandbox import CallCase

# Powers of two: sums of such times are exact, so that events at the very end of a step stay there.
BASE, PER, PREFILL = 2.0**-8, 2.0**-13, 2.0**-15
IDEA = Draw(10_000, stop=STOPS[Action.DEFINE])
CODE = Draw(10_000, stop=STOPS[Action.CODE])
CASES = tuple(ProblemTest(case=CallCase(args=[n], expected=n)) for n in range(4))


def now():
    return asyncio.get_running_loop().time()


def engine(lengths=None, **options):
    """An engine whose requests have these lengths, in order of arrival, or 10 tokens each."""
    left = iter(lengths) if lengths is not None else None
    policy = SimPolicy(length=lambda rng, action: next(left) if left is not None else 10, malformed=0.0)
    return SimEngine(policy, **{"base_s": BASE, "per_sequence_s": PER, **options})


async def timed(work):
    """Result or error of `work`, and when it came."""
    try:
        return await work, now()
    except EngineError as error:
        return error, now()
