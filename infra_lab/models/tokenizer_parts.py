"""What every tokenizer file comes down to, whether a Hugging Face folder or a GGUF file brought it."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from tokenizers import AddedToken, Tokenizer, processors

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The roles a special token can have; chat templates print them by these names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerParts:
    """The `tokenizers` pipeline and what its own file format does not hold."""

    backend: Tokenizer
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    """Every token that ends a sequence: chat models have one for the turn and one for the text."""
    named_tokens: dict[str, str] = field(default_factory=dict)
    """Role → text, for example {"eos_token": "<|im_end|>"}."""
    chat_templates: dict[str, str] = field(default_factory=dict)
    """"default", and where the model has it "tool_use"."""


def add_known_special_tokens(backend: Tokenizer, contents: Iterable[str]) -> None:
    """Make texts of the vocabulary special tokens, unless they are added tokens already.

    A text outside the vocabulary is left out: it would get an id that the model has no embedding for.
    """
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    known = [text for text in contents if text not in added and backend.token_to_id(text) is not None]
    backend.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in known])


def set_bos_eos(backend: Tokenizer, *, bos: str | None, eos: str | None) -> None:
    """Let `encode(add_special_tokens=True)` put `bos` before and `eos` after the text; None: nothing there."""
    specials = [(text, backend.token_to_id(text)) for text in (bos, eos) if text is not None]
    single = [*([bos] if bos else []), "$A", *([eos] if eos else [])]
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=specials)
