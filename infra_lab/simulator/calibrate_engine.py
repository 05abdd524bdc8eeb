"""Times an engine's steps at the batch sizes, chunk sizes and contexts that it may meet: what a cost model is fitted to.

In a round for each batch size, so many requests of random lengths come in at once and are served to their end, so that steps
with prompts, mixed steps and decodes at falling batch sizes all occur. A step is timed on the engine's clock, from call to
return: the scheduler, the executor, text, and the recorder.
"""

import random
from collections.abc import Iterator
from itertools import islice

from infra_lab.engine.core import EngineCore
from infra_lab.sampling_params import SamplingParams
from infra_lab.simulator.calibrate import TimedStep, shape_of_chunks

OUTPUT_TOKENS = (8, 32)
"""Of a request, from and to: enough for decodes of each size, and no more than is needed."""
_PRINTABLE = range(32, 127)
"""Prompt tokens: plain text for a byte-level vocabulary, and known to any other one."""


def timed_steps(core: EngineCore, *, rounds: int = 1, seed: int = 0) -> list[TimedStep]:
    """Serve rounds of every batch size from 1 to `max_num_seqs`, doubling; return their steps, the first of each left out.

    The engine must have nothing to do, and is left so. Prompts are random, so that the prefix cache has none of them.
    """
    rng = random.Random(seed)
    return [step for _ in range(rounds) for step in time_round(core, rng)]


def time_round(core: EngineCore, rng: random.Random) -> Iterator[TimedStep]:
    """The steps of one round, each computed when it is asked for: what goes on in between is not timed."""
    for size in _sizes(core.scheduler.config.max_num_seqs):
        yield from islice(_serve(core, size, rng), 1, None)


def _sizes(largest: int) -> Iterator[int]:
    size = 1
    while size < largest:
        yield size
        size *= 2
    yield largest


def _serve(core: EngineCore, num_requests: int, rng: random.Random) -> Iterator[TimedStep]:
    blocks, limit = core.scheduler.blocks, core.scheduler.config.max_model_len
    room = min(limit, blocks.num_blocks * blocks.block_size // num_requests)  # so that nobody is preempted
    for _ in range(num_requests):
        output = min(rng.randint(*OUTPUT_TOKENS), room // 2)
        prompt = [rng.choice(_PRINTABLE) for _ in range(rng.randint(1, room - output))]
        core.add(prompt, SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True))
    while core.has_work:
        begin = core.clock.now()
        core.step()
        end, record = core.clock.now(), core.recorder.last
        assert record is not None
        yield TimedStep(shape_of_chunks(record.chunks), end - begin)
