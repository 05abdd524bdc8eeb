"""One generation: what was asked for, what came, and how fast that was against what the machine's memory delivers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock

from infra_lab.engine.llm import LLM
from infra_lab.engine.outputs import OutputDelta, RequestMetrics
from infra_lab.engine.recorder import StepRecord
from infra_lab.errors import CorruptModelError, ModelNotFoundError
from infra_lab.models.fetch import resolve_model
from infra_lab.sampling_params import SamplingParams
from infra_lab.widgets.figures.parts import si
from infra_lab.widgets.knobs import knob

_KV_BYTES = 64 << 20
"""Room for one request of some thousand tokens; a panel never runs more."""


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """What one press of Generate asks for."""

    model: str
    prompt: str
    max_tokens: int = knob(64, low=1, high=256, label="Tokens at most", help="The answer ends here at the latest")
    temperature: float = knob(
        0.0, low=0.0, high=2.0, step=0.1, label="Temperature", help="0 takes the likeliest token; more is more varied"
    )
    as_chat: bool = knob(
        True, label="Ask as a chat", help="Wrap the prompt in the model's chat template, where it has one"
    )


@dataclass(slots=True)
class Generation:
    """One run; it grows while it streams."""

    settings: GenerationSettings
    weight_bytes: int
    """What one decode step reads."""
    read_bytes_per_s: float
    """What the machine's memory delivers."""
    is_chat: bool
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    metrics: RequestMetrics | None = None
    finish_reason: str | None = None
    """"stop", "length", or "abort" where Stop was pressed; None while it runs."""
    steps: list[StepRecord] = field(default_factory=list)
    """All of the run, once it has ended."""

    def add(self, delta: OutputDelta) -> None:
        """Append what one step brought."""
        self.token_ids += delta.token_ids
        self.text += delta.text
        self.metrics, self.finish_reason = delta.metrics, delta.finish_reason

    @property
    def tokens_per_s(self) -> float | None:
        """Speed after the first token; None before the second."""
        tpot_s = self.metrics.tpot_s if self.metrics else None
        return 1 / tpot_s if tpot_s else None

    @property
    def achieved_bytes_per_s(self) -> float | None:
        """Model bytes × tokens/s."""
        return self.tokens_per_s * self.weight_bytes if self.tokens_per_s else None

    @property
    def share_of_ceiling(self) -> float | None:
        """Achieved bandwidth as a share of what memory delivers. Above 1 the weights come from the processor's cache."""
        return self.achieved_bytes_per_s / self.read_bytes_per_s if self.achieved_bytes_per_s else None

    @property
    def summary(self) -> str:
        """The run in two sentences."""
        ends = {
            "stop": "the model ended it",
            "length": "the limit ended it",
            "abort": "stopped; its blocks are free again",
        }
        count = len(self.token_ids)
        if self.metrics is None or self.metrics.ttft_s is None:
            return "Stopped before the first token."
        said = f"{self.settings.model} wrote {count} token{'s' * (count != 1)}"
        said += f" ({ends.get(self.finish_reason or '', 'running')})."
        said += f" The first one took {three_digits(self.metrics.ttft_s * 1e3)} ms"
        if self.tokens_per_s is None or self.achieved_bytes_per_s is None or self.share_of_ceiling is None:
            return said + "."
        return (
            f"{said}, then {three_digits(self.tokens_per_s)} tokens/s: weights read at {si(self.achieved_bytes_per_s, 'B/s')}, "
            f"{self.share_of_ceiling:.0%} of the {si(self.read_bytes_per_s, 'B/s')} that memory delivers."
        )


class SharedEngine:
    """A loaded model and the lock of who may step it."""

    def __init__(self, model: str) -> None:
        # Without a prefix cache, so that every press computes its whole prompt and two runs can be compared.
        self.llm = LLM(model, kv_cache_bytes=_KV_BYTES, enable_prefix_cache=False)
        self.lock = Lock()
        # The first step of a process generates code and faults pages in: seconds that belong to no request.
        self.llm.generate([[0] * 16], SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True))


_engines: dict[str, SharedEngine] = {}
_loading = Lock()


def shared_engine(model: str) -> SharedEngine:
    """Return the engine of a model: one a process, whatever the number of panels."""
    with _loading:
        if model not in _engines:
            _engines[model] = SharedEngine(model)
        return _engines[model]


def split_available(models: Sequence[str]) -> tuple[list[str], str]:
    """Split models into those on this machine and a line on the others. Raises ModelNotFoundError if there is none."""
    found, missing = [], []
    for model in dict.fromkeys(models):
        try:
            resolve_model(model)
            found.append(model)
        except (ModelNotFoundError, CorruptModelError) as error:
            missing.append(str(error))
    if not found:
        raise ModelNotFoundError("; ".join(missing) or "no model was named; give at least one, such as 'tiny'")
    return found, "\n".join(f"Not here: {line}" for line in missing)


def three_digits(value: float) -> str:
    """Three digits, never an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
