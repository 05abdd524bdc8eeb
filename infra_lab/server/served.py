"""The engine as the server sees it: under which names, and how much room it has."""

import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from infra_lab.errors import ConfigError

if TYPE_CHECKING:
    from infra_lab.engine.async_engine import AsyncEngine
    from infra_lab.models.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ServedEngine:
    """An engine, whatever executor it has, and the names that clients call it by."""

    engine: "AsyncEngine"
    names: tuple[str, ...]
    """The first is what responses carry."""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        if not self.names or not all(self.names):
            raise ConfigError(f"the served model's names are {self.names!r}; give at least one that is not empty")

    @property
    def name(self) -> str:
        """The model's name in responses and metrics."""
        return self.names[0]

    @property
    def tokenizer(self) -> "Tokenizer":
        """The model's tokenizer."""
        return self.engine.tokenizer

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and output together, at most."""
        return self.engine.core.scheduler.config.max_model_len

    @property
    def max_num_seqs(self) -> int:
        """Sequences that run at once."""
        return self.engine.core.scheduler.config.max_num_seqs

    def room_for_output(self, num_prompt_tokens: int) -> int:
        """New tokens that a prompt leaves room for, in the context and in the KV cache; not positive: none.

        The last token is sampled and never stored, so it needs no place in the cache.
        """
        blocks = self.engine.core.scheduler.blocks
        stored = blocks.num_blocks * blocks.block_size
        return min(self.max_model_len, stored + 1) - num_prompt_tokens

    @property
    def takes_tools(self) -> bool:
        """Whether the model's chat template writes tools into the prompt."""
        return "tool_use" in self.tokenizer.chat_templates or self.template_names("tools")

    def template_names(self, word: str) -> bool:
        """Whether the model's chat template has a word anywhere."""
        return bool(re.search(rf"\b{word}\b", self.tokenizer.chat_template or ""))
