"""What a request asks of the engine, checked and tokenized."""

from dataclasses import dataclass

from infra_lab.sampling_params import SamplingParams
from infra_lab.server.mailbox import Chunking

WHOLE = Chunking(tokens=None)
"""One piece a choice, at its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a request asks of the engine."""

    prompts: list[list[int]]
    """Token ids, one list a prompt."""
    params: SamplingParams
    priority: int = 0
    cache_salt: str = ""
    chunking: Chunking = WHOLE
    timeout_s: float | None = None

    @property
    def num_choices(self) -> int:
        """Prompts × samples of each; choice i belongs to prompt i // n."""
        return len(self.prompts) * self.params.n

    @property
    def num_prompt_tokens(self) -> int:
        """Of all prompts together."""
        return sum(len(prompt) for prompt in self.prompts)
