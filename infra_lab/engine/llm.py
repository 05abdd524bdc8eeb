"""`LLM`: the engine as a Python object, one call from prompts to text."""

from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from infra_lab.clock import Clock
from infra_lab.engine.build import build_engine
from infra_lab.engine.config import EngineConfig
from infra_lab.engine.outputs import OutputDelta, RequestOutput, SampleOutput
from infra_lab.engine.recorder import FlightRecorder
from infra_lab.errors import InvalidRequestError
from infra_lab.models.tokenizer import Tokenizer
from infra_lab.sampling_params import SamplingParams

Prompt = str | Sequence[int]


class LLM:
    """A model, loaded and ready. Keyword arguments are the fields of `EngineConfig`.

    >>> llm = LLM("tiny")
    >>> llm.generate(["Hello"], SamplingParams(max_tokens=16, temperature=0.0))[0].text

    Not for several threads at once; `AsyncEngine` is.
    """

    def __init__(self, model: str = "tiny", *, clock: Clock | None = None, **settings: Any) -> None:
        self.config = EngineConfig(model=model, **settings)
        engine = build_engine(self.config, clock)
        self.core = engine.core
        self.model = engine.model
        self.kv_memory = engine.kv_memory
        self.resolved = engine.resolved

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self.core.tokenizer

    @property
    def recorder(self) -> FlightRecorder:
        """What every step did."""
        return self.core.recorder

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that one decode step reads."""
        return self.model.weight_bytes

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[RequestOutput]:
        """Complete all prompts (texts or token ids), batched continuously; outputs are in the order of the prompts.

        One `SamplingParams` for all, or one for each. Raises InvalidRequestError before anything is generated if any
        of the prompts cannot be served.
        """
        prompts = _as_list(prompts)
        all_params = self._params_for(prompts, params)
        outputs: dict[str, RequestOutput] = {}
        try:
            for prompt, prompt_params in zip(prompts, all_params, strict=True):
                token_ids = self.encode(prompt)
                request_id = self.core.add(token_ids, prompt_params)
                samples = [SampleOutput() for _ in range(prompt_params.n)]
                text = prompt if isinstance(prompt, str) else None
                outputs[request_id] = RequestOutput(request_id, text, token_ids, samples)
            num_open = sum(len(output.samples) for output in outputs.values())
            while num_open:
                for delta in self._step():
                    if delta.request_id in outputs:  # others may be under way: open streams, requests of `core.add`
                        outputs[delta.request_id].samples[delta.index].add(delta)
                        num_open -= delta.finish_reason is not None
            self._settle()
        except BaseException:
            for request_id in outputs:
                self.core.abort(request_id)
            raise
        return list(outputs.values())

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[OutputDelta]:
        """Complete one prompt; yield what each step adds. Closing the iterator early ends the request.

        Several streams may be open, and anything else may step the engine meanwhile (`generate`, a program): each gets all
        that is its own.
        """
        request_id = self.core.add(self.encode(prompt), params or SamplingParams())
        deltas = self.core.follow(request_id)
        try:
            while deltas or self.core.is_open(request_id):
                if deltas:
                    yield deltas.popleft()
                elif not self.core.failed("a step failed that another call of this engine ran", request_id):
                    self._step()
            self._settle()
        finally:
            self.core.abort(request_id)

    def chat(self, messages: Sequence[Mapping[str, Any]], params: SamplingParams | None = None) -> RequestOutput:
        """Answer a conversation, in the model's own chat format."""
        return self.generate([self.chat_token_ids(messages)], params)[0]

    def chat_token_ids(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Write a conversation as the model's chat template does, ready for an answer, and tokenize it."""
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        return self.tokenizer.encode(text, add_special_tokens=False)  # the template has written them

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt; ids pass through."""
        return self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)

    def close(self) -> None:
        """Give back model and KV memory."""
        self.core.executor.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _step(self) -> list[OutputDelta]:
        deltas = self.core.step()
        if held_s := self.core.held_s:
            self.core.clock.sleep(held_s)
        return deltas

    def _settle(self) -> None:
        """Where nobody is left, finish the step that overlap has launched for those who have ended."""
        while self.core.has_work and not self.core.scheduler.has_work:
            self.core.step()

    def _params_for(
        self, prompts: list[Prompt], params: SamplingParams | Sequence[SamplingParams] | None
    ) -> Sequence[SamplingParams]:
        if params is None or isinstance(params, SamplingParams):
            return [params or SamplingParams()] * len(prompts)
        if len(params) != len(prompts):
            raise InvalidRequestError(f"{len(prompts)} prompts but {len(params)} SamplingParams; give one, or one each")
        return params


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """Accept a single prompt where a list of prompts is expected."""
    if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]
