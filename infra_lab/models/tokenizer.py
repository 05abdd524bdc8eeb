"""Text to token ids and back.

The `tokenizers` library does the BPE; this module loads it from a Hugging Face folder or a GGUF file behind one
interface. Ids and text equal those of transformers' tokenizer of the same files, decoded with
`clean_up_tokenization_spaces=False`: the "clean-up" of older releases deletes spaces before punctuation ("x = [ 1 ]"
loses one), which changes what the model wrote.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from infra_lab.errors import InvalidRequestError, ModelNotFoundError
from infra_lab.models.chat_template import render_chat_template
from infra_lab.models.gguf_tokenizer import gguf_tokenizer
from infra_lab.models.hf_tokenizer import read_hf_tokenizer
from infra_lab.models.token_bytes import byte_level_bytes, has_byte_fallback, is_byte_level, sentencepiece_bytes
from infra_lab.models.tokenizer_parts import TokenizerParts


class Tokenizer:
    """Text to token ids and back. Changes nothing after construction; threads may share one.

    A special token written in a text ("<|im_end|>") is parsed as that token, as transformers does: whoever puts
    untrusted text into a prompt has to filter it first.
    """

    def __init__(self, parts: TokenizerParts) -> None:
        self._backend = parts.backend
        self.bos_token_id = parts.bos_token_id
        self.eos_token_ids = parts.eos_token_ids
        self.chat_templates = parts.chat_templates
        self.named_tokens = parts.named_tokens
        added = parts.backend.get_added_tokens_decoder()
        self.special_token_ids = frozenset(i for i, token in added.items() if token.special)
        self.vocab_size: int = parts.backend.get_vocab_size(with_added_tokens=True)
        self.is_byte_level = is_byte_level(parts.backend)
        """Whether `decode` is exactly the tokens' bytes, joined and read as UTF-8."""
        self.has_byte_fallback = has_byte_fallback(parts.backend)
        self._bytes_of: dict[int, bytes] = {}

    @property
    def chat_template(self) -> str | None:
        """The Jinja source of the chat template; None for a model that has none."""
        return self.chat_templates.get("default")

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text.

        add_special_tokens: put what the model wants around a text (for many models a bos token, for others nothing).
        Use False for the output of `apply_chat_template`, which has written its special tokens itself.

        Raises InvalidRequestError if `text` is not a string of Unicode characters (lone surrogates are none).
        """
        if not isinstance(text, str):
            raise InvalidRequestError(f"the text to tokenize is a {type(text).__name__}; expected str")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequestError(
                f"the text holds a lone surrogate U+{ord(text[error.start]):04X} at character {error.start}, which no "
                "UTF-8 text can; decode the input with errors='replace' first"
            ) from error
        # `encode` holds the GIL all the while, so that one long text would stall every thread; a batch lets go of it.
        [encoding] = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of token ids; bytes that are not UTF-8 become U+FFFD, ids outside the vocabulary nothing."""
        text: str = self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        return text

    def token_text(self, token_id: int) -> str | None:
        """Return the token as the vocabulary spells it ("Ġthe"); None outside the vocabulary."""
        text: str | None = self._backend.id_to_token(token_id)
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes one token stands for, perhaps a part of a character; b"" outside the vocabulary."""
        found = self._bytes_of.get(token_id)
        if found is None:
            token = self.token_text(token_id)
            to_bytes = byte_level_bytes if self.is_byte_level else sentencepiece_bytes
            found = self._bytes_of[token_id] = b"" if token is None else to_bytes(token)
        return found

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the prompt that a chat makes; encode it with `add_special_tokens=False`.

        messages: [{"role": "user", "content": "Hello"}, ...]; add_generation_prompt: end with the start of the
        assistant's turn; tools: JSON schemas of functions; template_kwargs: a model's own switches, such as
        {"enable_thinking": False}.

        Raises InvalidRequestError for messages that are malformed or that the template refuses, and for a model that
        has no chat template.
        """
        template = self.chat_templates.get("tool_use") if tools else None
        template = template or self.chat_template
        if template is None:
            raise InvalidRequestError("the model has no chat template; send a plain prompt instead of messages")
        return render_chat_template(
            template,
            messages,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
            variables={**self.named_tokens, **(template_kwargs or {})},
        )


def load_tokenizer(path: Path) -> Tokenizer:
    """Load the tokenizer of a Hugging Face folder or a GGUF file.

    Raises ModelNotFoundError if there is none, CorruptModelError if its files are damaged, UnsupportedModelError for a
    GGUF vocabulary or pre-tokenizer that is not supported.
    """
    path = Path(path)
    if path.is_dir():
        return Tokenizer(read_hf_tokenizer(path))
    if not path.exists():
        raise ModelNotFoundError(f"{path} does not exist; expected a Hugging Face folder or a .gguf file")
    # Reading GGUF maps tensors and so imports torch, which a Hugging Face folder's tokenizer has no need of.
    from infra_lab.models.gguf_file import GGUFFile

    return Tokenizer(gguf_tokenizer(GGUFFile(path).metadata, str(path)))
