"""`/tokenize` and `/detokenize`, as vLLM has them."""

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, model_validator

from infra_lab.server.context import context_of
from infra_lab.server.prepare import check_model, off_loop
from infra_lab.server.routes.chat import prompt_of
from infra_lab.server.runtime import Runtime
from infra_lab.server.sampling_fields import FIRST_ERROR


class TokenizeRequest(BaseModel):
    """A text, or the messages of a chat."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[dict[str, Any]], FIRST_ERROR] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one_of_both(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


class DetokenizeRequest(BaseModel):
    """Token ids."""

    model: str | None = None
    tokens: list[int] = Field(max_length=1_000_000, fail_fast=True)


def routes(runtime: Runtime) -> APIRouter:
    """Return the routes."""
    router = APIRouter(tags=["tokenizer"])
    tokenizer = runtime.served.tokenizer

    @router.post("/tokenize")
    async def tokenize(request: Request, fields: TokenizeRequest) -> dict[str, Any]:
        """Return the token ids of a text or a chat."""
        check_model(fields.model, runtime)
        context, text = context_of(request.scope), fields.prompt or ""
        if fields.messages is not None:
            chat = fields.messages
            tokens = await prompt_of(runtime, context, chat, add_generation_prompt=fields.add_generation_prompt)
        else:
            tokens = await off_loop(
                lambda: tokenizer.encode(text, add_special_tokens=fields.add_special_tokens), context
            )
        strings = None
        if fields.return_token_strs:
            strings = await off_loop(lambda: [tokenizer.token_text(token) for token in tokens], context)
        return {
            "count": len(tokens),
            "max_model_len": runtime.served.max_model_len,
            "tokens": tokens,
            "token_strs": strings,
        }

    @router.post("/detokenize")
    async def detokenize(request: Request, fields: DetokenizeRequest) -> dict[str, Any]:
        """Return the text of token ids."""
        check_model(fields.model, runtime)

        def decode() -> str:
            return tokenizer.decode(_in_vocabulary(fields.tokens), skip_special_tokens=False)

        return {"prompt": await off_loop(decode, context_of(request.scope))}

    return router


def _in_vocabulary(tokens: list[int]) -> list[int]:
    """What no tokenizer can hold stands for nothing, as ids beyond the vocabulary do."""
    return [token for token in tokens if 0 <= token < 2**32]
