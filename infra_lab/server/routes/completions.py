"""`/v1/completions`."""

from collections.abc import Sequence
from typing import Annotated, cast

from fastapi import APIRouter, Request, Response
from pydantic import Field
from starlette.responses import JSONResponse

from infra_lab.sampling_params import MAX_LOGPROBS
from infra_lab.server.api_error import invalid
from infra_lab.server.completion_format import CompletionFormat
from infra_lab.server.context import Context, context_of
from infra_lab.server.prepare import check_model, make_job, off_loop
from infra_lab.server.runtime import Runtime
from infra_lab.server.sampling_fields import FIRST_ERROR, GenerationFields
from infra_lab.server.sse import stream

DEFAULT_MAX_TOKENS = 16
"""OpenAI's, for this API."""
Prompt = str | list[int]
TokenIds = Annotated[list[int], FIRST_ERROR]


class CompletionRequest(GenerationFields):
    """The body of a completion request."""

    prompt: str | Annotated[list[str], FIRST_ERROR] | TokenIds | Annotated[list[TokenIds], FIRST_ERROR]
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    add_special_tokens: bool | None = None

    def prompts(self) -> list[Prompt]:
        """The prompts as a list, each a text or token ids."""
        prompt = self.prompt
        if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
            return [prompt]
        return cast(list[Prompt], prompt)


def routes(runtime: Runtime) -> APIRouter:
    """Return the route."""
    router = APIRouter(tags=["openai"])

    @router.post("/v1/completions", response_model=None)
    async def create_completion(request: Request, fields: CompletionRequest) -> Response:
        """Continue texts."""
        check_model(fields.model, runtime)
        _check_supported(fields)
        context = context_of(request.scope)
        context.is_stream = bool(fields.stream)
        prompts = fields.prompts()
        special = fields.add_special_tokens is not False
        token_ids = await encode_all(prompts, runtime, context, add_special_tokens=special)
        if runtime.config.log_prompts:
            context.prompt = "\n".join(_as_text(prompt, runtime) for prompt in prompts)
        job = await make_job(
            fields,
            token_ids,
            runtime,
            context,
            param="prompt",
            default_max_tokens=DEFAULT_MAX_TOKENS,
            logprobs=fields.logprobs,
        )
        echoes = [_as_text(prompt, runtime) if fields.echo else "" for prompt in prompts for _ in range(job.params.n)]
        generation = runtime.start(context, job, request.receive)
        completion = CompletionFormat(
            response_id=f"cmpl-{context.engine_id}",
            model=fields.model or runtime.served.name,
            tokenizer=runtime.served.tokenizer,
            num_top_logprobs=fields.logprobs,
            skip_special_tokens=job.params.skip_special_tokens,
            with_token_ids=bool(fields.return_token_ids),
            with_usage=fields.wants_usage,
            echoes=echoes,
        )
        if fields.stream:
            return await stream(generation, completion, runtime.config.heartbeat_s)
        return JSONResponse(completion.response(generation, await generation.collect()))

    return router


async def encode_all(
    prompts: Sequence[Prompt], runtime: Runtime, context: Context, *, add_special_tokens: bool
) -> list[list[int]]:
    """Tokenize the prompts that are texts.

    Raises ApiError for more prompts than there can ever be room for, InvalidRequestError for a text that is not Unicode,
    and for a token id outside the vocabulary.
    """
    runtime.admission.check(len(prompts))
    tokenizer, check_ids = runtime.served.tokenizer, runtime.served.engine.core.check_prompt

    def encoded(prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return tokenizer.encode(prompt, add_special_tokens=add_special_tokens)
        check_ids(prompt)
        return prompt

    return await off_loop(lambda: [encoded(prompt) for prompt in prompts], context)


def _as_text(prompt: Prompt, runtime: Runtime) -> str:
    return prompt if isinstance(prompt, str) else runtime.served.tokenizer.decode(prompt, skip_special_tokens=False)


def _check_supported(fields: CompletionRequest) -> None:
    fields.check_stream_options()
    if fields.suffix:
        raise invalid("suffix: filling in the middle is not supported; leave it out", "suffix")
    if fields.best_of is not None and fields.best_of != (fields.n or 1):
        raise invalid("best_of must equal n: this server returns every sample that it draws", "best_of")
    if fields.echo and fields.logprobs is not None:
        raise invalid("echo with logprobs: prompt log-probabilities are not supported; leave one of them out", "echo")
