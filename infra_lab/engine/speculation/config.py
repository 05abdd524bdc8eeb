"""What a user may ask of speculative decoding."""

from dataclasses import dataclass

from infra_lab.errors import ConfigError

METHODS = {
    "ngram": "what followed the latest tokens where they stood before, as in prompt lookup decoding (Saxena 2023)",
    "draft": "a smaller model of the same vocabulary (Leviathan 2023)",
    "early-exit": "the model's own first layers, then its output layer (as LayerSkip, Elhoushi 2024, for models trained so)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculation:
    """Who proposes, and how much. Raises ConfigError for an unknown method and for settings that it does not have."""

    method: str
    """One of `METHODS`."""
    num_tokens: int = 4
    """Proposals for each decode of a step, at most."""
    draft_model: str | None = None
    """For "draft": a model as `EngineConfig.model` names it. Its KV cache has as many blocks as the model's own."""
    exit_layer: int | None = None
    """For "early-exit": how many of the first layers propose; None: a quarter of them."""
    max_ngram: int = 4
    """For "ngram": so many of the latest tokens are looked for, fewer where those were not seen before."""
    min_ngram: int = 2

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"unknown speculation {self.method!r}; known: {', '.join(METHODS)}")
        if self.num_tokens < 1:
            raise ConfigError(f"num_tokens of speculation is {self.num_tokens}; it must be at least 1")
        if not 1 <= self.min_ngram <= self.max_ngram:
            raise ConfigError(
                f"min_ngram is {self.min_ngram} and max_ngram {self.max_ngram}; it takes 1 <= min_ngram <= max_ngram"
            )
        if (self.method == "draft") != (self.draft_model is not None):
            raise ConfigError(
                f"speculation {self.method!r} with draft_model = {self.draft_model!r}; "
                "'draft' needs one, the others have none"
            )
        if self.exit_layer is not None and self.method != "early-exit":
            raise ConfigError(f"exit_layer is {self.exit_layer}, but speculation is {self.method!r}, not 'early-exit'")


def speculation_of(speculation: str | Speculation | None) -> Speculation | None:
    """Return the settings behind a method's name, with their defaults; settings themselves, and None, pass.

    Raises ConfigError for an unknown name, and for "draft", which needs a model: `Speculation(method="draft", …)`.
    """
    return Speculation(method=speculation) if isinstance(speculation, str) else speculation
