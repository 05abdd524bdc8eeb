"""From the fields of a request to a job: its tokens counted, its limits checked, before the engine hears of it."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from infra_lab.server.api_error import ApiError, invalid
from infra_lab.server.context import Context
from infra_lab.server.job import Job
from infra_lab.server.runtime import Runtime
from infra_lab.server.sampling_fields import GenerationFields

T = TypeVar("T")
LONG_BODY_BYTES = 4096
"""To parse, render and tokenize more than this would hold up every stream for a millisecond, so it goes to a thread."""


async def off_loop(work: Callable[[], T], context: Context) -> T:
    """Do `work` on what a request has sent: here if that is little, else on a thread.

    All of the body counts, not only its texts: a million empty messages are work too.
    """
    return work() if context.body_bytes <= LONG_BODY_BYTES else await asyncio.to_thread(work)


def check_model(name: str | None, runtime: Runtime) -> None:
    """Raise ApiError (404) if a request names a model that is not served here; no name means the one that is."""
    if name is not None and name not in runtime.served.names:
        raise ApiError(
            404,
            f"the model {name!r} does not exist here; this server has {', '.join(runtime.served.names)}",
            param="model",
            code="model_not_found",
        )


async def make_job(
    fields: GenerationFields,
    prompts: list[list[int]],
    runtime: Runtime,
    context: Context,
    *,
    param: str,
    default_max_tokens: int | None,
    logprobs: int | None,
) -> Job:
    """Check the sizes, compile the grammar and put the job together.

    default_max_tokens: None: as many as there is room for; param: the field that the prompt came in, for errors.
    Raises ApiError, InvalidRequestError or MissingExtraError.
    """
    if not prompts:
        raise invalid(f"{param} is empty; give at least one prompt", param)
    longest = max(len(prompt) for prompt in prompts)
    room = runtime.served.room_for_output(longest)
    limit = runtime.config.max_prompt_tokens
    if limit is not None and longest > limit:
        raise invalid(
            f"the prompt has {longest} tokens, and this server takes {limit}; shorten it", param, "prompt_too_long"
        )
    wanted = fields.max_output_tokens()
    if room < (wanted or 1):
        raise invalid(
            f"the model's context holds {longest + room} tokens; the prompt has {longest}, and "
            f"{wanted or 'at least 1'} new ones are asked for; shorten the prompt, or lower max_tokens",
            param,
            "context_length_exceeded",
        )
    default = room if default_max_tokens is None else min(room, default_max_tokens)
    params = await off_loop(lambda: fields.sampling_params(default_max_tokens=default, logprobs=logprobs), context)
    return Job(
        prompts=prompts,
        params=await runtime.served.engine.bound(params),
        priority=fields.priority or 0,
        cache_salt=fields.cache_salt or "",
        chunking=fields.chunking(runtime.config),
        timeout_s=fields.timeout,
    )
