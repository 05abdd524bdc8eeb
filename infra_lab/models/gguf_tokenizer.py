"""The tokenizer that a GGUF file carries: byte-level BPE from its vocabulary and merges.

tokenizer.ggml.model                  "gpt2": byte-level BPE, the only kind read here
tokenizer.ggml.pre                    the name of the pre-tokenizer (see `pre_tokenizers`)
tokenizer.ggml.tokens, .merges        the vocabulary in order of ids, and "left right" pairs in order of rank
tokenizer.ggml.token_type             per token: 3 control (special), 4 user-defined, both matched whole in a text
tokenizer.ggml.{bos,eos,...}_token_id
tokenizer.ggml.add_bos_token          whether a text starts with bos
tokenizer.chat_template               Jinja source
"""

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models

from infra_lab.errors import CorruptModelError, UnsupportedModelError
from infra_lab.models.pre_tokenizers import NAMES, PreTokenizer
from infra_lab.models.tokenizer_parts import NAMED_TOKENS, TokenizerParts, add_known_special_tokens, set_bos_eos

_CONTROL, _USER_DEFINED = 3, 4
_SPELLINGS = {"unk": "unknown", "pad": "padding", "sep": "seperator"}
"""Where the format's key differs from the role's name."""


def gguf_tokenizer(metadata: Mapping[str, Any], source: str) -> TokenizerParts:
    """Build the tokenizer from a GGUF file's metadata; `source` names the file in errors.

    Raises UnsupportedModelError for a vocabulary that is not byte-level BPE or an unknown pre-tokenizer, and
    CorruptModelError for vocabulary, token types, merges and ids that do not fit together.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise UnsupportedModelError(
            f"{source}: tokenizer model {kind!r} is not supported from GGUF; expected 'gpt2' (byte-level BPE). "
            "Use the model's Hugging Face folder, whose tokenizer.json covers all kinds"
        )
    pre = metadata.get("tokenizer.ggml.pre", "default")
    if pre not in NAMES:
        raise UnsupportedModelError(
            f"{source}: pre-tokenizer {pre!r} is not known; supported are {', '.join(sorted(NAMES))}. "
            "Use the model's Hugging Face folder instead"
        )
    tokens = _strings(metadata, "tokens", source)
    backend = _build_bpe(tokens, _strings(metadata, "merges", source), NAMES[pre], source)
    _add_whole_tokens(backend, tokens, metadata.get("tokenizer.ggml.token_type"), source)

    roles = {role: _token_id(metadata, role.removesuffix("_token"), tokens, source) for role in NAMED_TOKENS}
    named = {role: tokens[token_id] for role, token_id in roles.items() if token_id is not None}
    add_known_special_tokens(backend, named.values())
    if metadata.get("tokenizer.ggml.add_bos_token", NAMES[pre].adds_bos):
        set_bos_eos(backend, bos=named.get("bos_token"), eos=None)
    ends = (_token_id(metadata, name, tokens, source) for name in ("eos", "eot", "eom"))
    return TokenizerParts(
        backend=backend,
        bos_token_id=roles["bos_token"],
        eos_token_ids=tuple(dict.fromkeys(token_id for token_id in ends if token_id is not None)),
        named_tokens=named,
        chat_templates=_chat_templates(metadata),
    )


def _build_bpe(tokens: list[str], merges: list[str], pre: PreTokenizer, source: str) -> Tokenizer:
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    try:
        bpe = models.BPE(
            vocab={token: token_id for token_id, token in enumerate(tokens)},
            merges=pairs,
            ignore_merges=pre.takes_known_words_whole,
        )
    except Exception as error:  # the library raises nothing more specific
        raise CorruptModelError(f"{source}: merges do not fit the vocabulary ({error}); fetch it again") from error
    backend = Tokenizer(bpe)
    if pre.normalizer is not None:
        backend.normalizer = pre.normalizer
    backend.pre_tokenizer = pre.splitter
    backend.decoder = decoders.ByteLevel()
    return backend


def _add_whole_tokens(backend: Tokenizer, tokens: list[str], types: list[int] | None, source: str) -> None:
    if types is None:
        return
    if len(types) != len(tokens):
        raise CorruptModelError(f"{source}: {len(tokens)} tokens but {len(types)} token types; fetch it again")
    typed = list(zip(tokens, types, strict=True))
    control = [AddedToken(text, normalized=False, special=True) for text, kind in typed if kind == _CONTROL]
    user_defined = [AddedToken(text, normalized=False, special=False) for text, kind in typed if kind == _USER_DEFINED]
    backend.add_special_tokens(control)
    backend.add_tokens(user_defined)


def _strings(metadata: Mapping[str, Any], name: str, source: str) -> list[str]:
    value = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise CorruptModelError(
            f"{source}: tokenizer.ggml.{name} is missing or not a list of strings; expected a complete model file"
        )
    return value


def _token_id(metadata: Mapping[str, Any], name: str, tokens: list[str], source: str) -> int | None:
    key = f"tokenizer.ggml.{_SPELLINGS.get(name, name)}_token_id"
    value = metadata.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or not 0 <= value < len(tokens):
        raise CorruptModelError(f"{source}: {key} is {value!r}, outside the vocabulary of {len(tokens)} tokens")
    return value


def _chat_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    keys = {name: f"tokenizer.chat_template.{name}" for name in metadata.get("tokenizer.chat_templates", [])}
    keys["default"] = "tokenizer.chat_template"
    return {name: metadata[key] for name, key in keys.items() if key in metadata}
