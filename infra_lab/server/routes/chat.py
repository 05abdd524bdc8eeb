"""`/v1/chat/completions`."""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field
from starlette.responses import JSONResponse

from infra_lab.errors import InvalidRequestError
from infra_lab.grammar import Grammar
from infra_lab.sampling_params import MAX_LOGPROBS
from infra_lab.server.api_error import invalid
from infra_lab.server.chat_format import ChatFormat
from infra_lab.server.context import Context, context_of
from infra_lab.server.prepare import check_model, make_job, off_loop
from infra_lab.server.response_format import grammar_of_call
from infra_lab.server.runtime import Runtime
from infra_lab.server.sampling_fields import FIRST_ERROR, MAX_INT32, GenerationFields
from infra_lab.server.sse import stream
from infra_lab.server.tool_calls import OPEN


class ChatRequest(GenerationFields):
    """The body of a chat request."""

    messages: Annotated[list[dict[str, Any]], FIRST_ERROR]
    max_completion_tokens: int | None = Field(default=None, ge=1, le=MAX_INT32)
    """OpenAI's newer name for max_tokens; it wins."""
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    tools: Annotated[list[dict[str, Any]], FIRST_ERROR] | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    """False: at most one call."""
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    """The template's own switches, such as {"enable_thinking": false}."""

    @property
    def is_forced_call(self) -> bool:
        """Whether the answer must be a tool call."""
        return self.tool_choice not in (None, "auto", "none")

    def grammar(self) -> Grammar | None:
        """What the output must look like; None: anything."""
        grammar = super().grammar()
        if not self.is_forced_call:
            return grammar
        if grammar is not None:
            raise invalid("tool_choice forces a call, and response_format asks for something else", "tool_choice")
        return grammar_of_call(self.tools or [], _chosen_tool(self.tool_choice))

    def max_output_tokens(self) -> int | None:
        """New tokens asked for, under either name."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


def routes(runtime: Runtime) -> APIRouter:
    """Return the route."""
    router = APIRouter(tags=["openai"])

    @router.post("/v1/chat/completions", response_model=None)
    async def create_chat_completion(request: Request, fields: ChatRequest) -> Response:
        """Answer a conversation."""
        check_model(fields.model, runtime)
        fields.check_stream_options()
        tools = _tools(fields, runtime)
        context = context_of(request.scope)
        context.is_stream = bool(fields.stream)
        prompt = await prompt_of(
            runtime,
            context,
            fields.messages,
            add_generation_prompt=fields.add_generation_prompt is not False,
            tools=tools,
            template_kwargs=fields.chat_template_kwargs,
            opening=f"{OPEN}\n" if fields.is_forced_call else "",
        )
        if runtime.config.log_prompts:
            context.prompt = runtime.served.tokenizer.decode(prompt, skip_special_tokens=False)
        top_logprobs = _top_logprobs(fields)
        job = await make_job(
            fields, [prompt], runtime, context, param="messages", default_max_tokens=None, logprobs=top_logprobs
        )
        generation = runtime.start(context, job, request.receive)
        chat = ChatFormat(
            response_id=f"chatcmpl-{context.engine_id}",
            model=fields.model or runtime.served.name,
            tokenizer=runtime.served.tokenizer,
            num_top_logprobs=top_logprobs,
            with_token_ids=bool(fields.return_token_ids),
            with_tools=bool(tools),
            is_forced_call=fields.is_forced_call,
            with_parallel_calls=fields.parallel_tool_calls is not False,
            with_usage=fields.wants_usage,
        )
        if fields.stream:
            return await stream(generation, chat, runtime.config.heartbeat_s)
        return JSONResponse(chat.response(generation, await generation.collect()))

    return router


async def prompt_of(
    runtime: Runtime,
    context: Context,
    messages: Sequence[dict[str, Any]],
    *,
    add_generation_prompt: bool = True,
    tools: Sequence[dict[str, Any]] | None = None,
    template_kwargs: dict[str, Any] | None = None,
    opening: str = "",
) -> list[int]:
    """Write the conversation as the model's template does, and tokenize it; `opening`: how the answer has to begin.

    Raises ApiError for messages that the template refuses.
    """
    tokenizer, knows_developers = runtime.served.tokenizer, runtime.served.template_names("developer")

    def render() -> list[int]:
        text = tokenizer.apply_chat_template(
            [_for_template(message, knows_developers) for message in messages],
            add_generation_prompt=add_generation_prompt,
            tools=tools,
            template_kwargs=template_kwargs,
        )
        return tokenizer.encode(text + opening, add_special_tokens=False)  # the template has written them

    try:
        return await off_loop(render, context)
    except InvalidRequestError as error:
        raise invalid(str(error), "messages") from error


def _tools(fields: ChatRequest, runtime: Runtime) -> list[dict[str, Any]] | None:
    if fields.is_forced_call and not fields.tools:
        raise invalid("tool_choice asks for a call, and there are no tools; give tools, or leave it out", "tool_choice")
    if not fields.tools or fields.tool_choice == "none":
        return None
    if not runtime.served.takes_tools:
        raise invalid(
            f"the chat template of {runtime.served.name} has no place for tools; leave them out, or serve a model that "
            "was trained to call them",
            "tools",
        )
    for index, tool in enumerate(fields.tools):
        function = tool.get("function")
        if (
            tool.get("type") != "function"
            or not isinstance(function, dict)
            or not isinstance(function.get("name"), str)
        ):
            raise invalid(f'tools[{index}] must be {{"type": "function", "function": {{"name": ...}}}}', "tools")
    return fields.tools


def _chosen_tool(tool_choice: str | dict[str, Any] | None) -> str | None:
    """The function that must be called; None: any of them."""
    if not isinstance(tool_choice, dict):
        return None
    function = tool_choice.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise invalid('tool_choice must be {"type": "function", "function": {"name": ...}}', "tool_choice")
    return name


def _top_logprobs(fields: ChatRequest) -> int | None:
    if fields.logprobs:
        return fields.top_logprobs or 0
    if fields.top_logprobs:
        raise invalid("top_logprobs is given, but logprobs is not true; set it", "top_logprobs")
    return None


def _for_template(message: dict[str, Any], knows_developers: bool) -> dict[str, Any]:
    """A message as templates expect it: a call's arguments are an object, not a string of JSON, and OpenAI's newer name
    for the system's role is the old one, unless the template has it. Some templates drop a role that they do not know.
    """
    if message.get("role") == "developer" and not knows_developers:
        message = {**message, "role": "system"}
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    return {**message, "tool_calls": [_with_parsed(call) for call in calls]}


def _with_parsed(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        return {**call, "function": {**function, "arguments": json.loads(function["arguments"] or "{}")}}
    except (ValueError, RecursionError) as error:
        raise invalid(f"the arguments of a call in messages are not JSON: {error}", "messages") from error
