"""The fields that all generating requests share, with OpenAI's names and vLLM's additions, as `SamplingParams`."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from infra_lab.grammar import Grammar
from infra_lab.sampling_params import SamplingParams
from infra_lab.server.api_error import invalid
from infra_lab.server.config import ServerConfig
from infra_lab.server.job import WHOLE
from infra_lab.server.mailbox import Chunking
from infra_lab.server.response_format import grammar_of

MAX_STOP_STRINGS = 4
MAX_STOP_LENGTH = 256
"""Characters. Every new token is compared with every beginning of a stop string, on the engine's thread."""
MAX_INT32 = 2**31 - 1
MAX_BIASES = 1024
FIRST_ERROR = Field(fail_fast=True)
"""For every list that a client may make long: pydantic notes an error for each element, so that four megabytes of nulls
would be seconds of the event loop's time and gigabytes of errors, for an answer that tells the first."""
GUIDED = ("guided_json", "guided_regex", "guided_choice", "guided_grammar")
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]


class StreamOptions(BaseModel):
    """How to stream."""

    include_usage: bool | None = None
    """End with a chunk that has the token counts and no choice."""
    chunk_tokens: int | None = Field(default=None, ge=1, le=MAX_INT32)
    """Send an event for at least so many tokens."""
    chunk_ms: float | None = Field(default=None, gt=0, le=60_000)
    """Send what there is when its oldest token is this old."""


class GenerationFields(BaseModel):
    """What completions and chats have in common. Unknown fields are ignored, null means the default."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = Field(default=None, max_length=512)
    n: int | None = Field(default=None, ge=1, le=128)
    temperature: float | None = Field(default=None, ge=0.0)
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    top_k: int | None = Field(default=None, ge=-1, le=MAX_INT32)
    min_p: float | None = Field(default=None, ge=0.0, le=1.0)
    presence_penalty: float | None = Field(default=None, ge=-2.0, le=2.0)
    frequency_penalty: float | None = Field(default=None, ge=-2.0, le=2.0)
    repetition_penalty: float | None = Field(default=None, gt=0.0)
    logit_bias: dict[int, Annotated[float, Field(ge=-100.0, le=100.0)]] | None = Field(default=None)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    max_tokens: int | None = Field(default=None, ge=1, le=MAX_INT32)
    min_tokens: int | None = Field(default=None, ge=0, le=MAX_INT32)
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)] | None = None
    stop_token_ids: list[int] | None = Field(default=None, max_length=256, fail_fast=True)
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    """vLLM's: one of json, json_object, regex, grammar, choice."""
    guided_json: dict[str, Any] | str | None = None
    """These four are vLLM's older names for members of structured_outputs, which many clients still send."""
    guided_regex: str | None = None
    guided_choice: Annotated[list[str], FIRST_ERROR] | None = None
    guided_grammar: str | None = None
    return_token_ids: bool | None = None
    """Add the token ids to every choice."""
    priority: int | None = Field(default=None, ge=-MAX_INT32, le=MAX_INT32)
    """Lower goes first."""
    cache_salt: str | None = Field(default=None, max_length=512)
    """Only requests with the same salt share cached prefixes."""
    timeout: float | None = Field(default=None, gt=0.0)
    """Seconds after which the request is given up."""

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _few_biases(cls, biases: object) -> object:
        """Before they are looked at one by one: a dict cannot fail fast."""
        if isinstance(biases, dict) and len(biases) > MAX_BIASES:
            raise ValueError(f"it has {len(biases)} tokens; at most {MAX_BIASES} are taken")
        return biases

    def sampling_params(self, *, default_max_tokens: int, logprobs: int | None) -> SamplingParams:
        """Return the engine's parameters. Raises ApiError for what the engine cannot do, InvalidRequestError for a value."""
        max_tokens = self.max_output_tokens()
        given: dict[str, Any] = {
            "n": self.n,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": 0 if self.top_k == -1 else self.top_k,
            "min_p": self.min_p,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "repetition_penalty": self.repetition_penalty,
            "logit_bias": self.logit_bias,
            "seed": self.seed,
            "max_tokens": default_max_tokens if max_tokens is None else max_tokens,
            "min_tokens": self.min_tokens,
            "stop": (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            "stop_token_ids": None if self.stop_token_ids is None else tuple(self.stop_token_ids),
            "include_stop": self.include_stop_str_in_output,
            "ignore_eos": self.ignore_eos,
            "skip_special_tokens": self.skip_special_tokens,
            "logprobs": logprobs,
            "grammar": self.grammar(),
        }
        return SamplingParams(**{name: value for name, value in given.items() if value is not None})

    def max_output_tokens(self) -> int | None:
        """New tokens asked for; None: no wish."""
        return self.max_tokens

    def grammar(self) -> Grammar | None:
        """What the output must look like; None: anything."""
        guided = {name: getattr(self, name) for name in GUIDED}
        return grammar_of(self.response_format, self.structured_outputs, guided)

    def chunking(self, config: ServerConfig) -> Chunking:
        """When to send an event: the request's wish, else the server's default."""
        if not self.stream:
            return WHOLE
        options = self.stream_options or StreamOptions()
        if options.chunk_tokens is None and options.chunk_ms is None:
            max_age_s = None if config.chunk_ms is None else config.chunk_ms / 1000
            return Chunking(config.chunk_tokens, max_age_s)
        return Chunking(options.chunk_tokens, None if options.chunk_ms is None else options.chunk_ms / 1000)

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def check_stream_options(self) -> None:
        """OpenAI refuses stream_options without stream; so do we. Raises ApiError."""
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options is given, but stream is not true; leave it out, or stream", "stream_options")
