"""The tokenizer of a Hugging Face folder.

tokenizer.json            the whole pipeline: normalizer, pre-tokenizer, BPE, decoder, added tokens   (required)
tokenizer_config.json     which token is bos, eos, ...; whether to add them; chat template
special_tokens_map.json   the same roles, in older folders
chat_template.jinja       the chat template, in newer folders; wins over tokenizer_config.json
generation_config.json    all end-of-sequence ids of a chat model
"""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from infra_lab.errors import CorruptModelError, ModelNotFoundError
from infra_lab.models.hf_json import Fields, read_json_object
from infra_lab.models.tokenizer_parts import NAMED_TOKENS, TokenizerParts, add_known_special_tokens, set_bos_eos


def read_hf_tokenizer(folder: Path) -> TokenizerParts:
    """Read the tokenizer of a Hugging Face folder.

    Raises ModelNotFoundError if it has no tokenizer.json, CorruptModelError if one of the files above is damaged.
    """
    backend = _read_backend(folder)
    config = _read_json(folder / "tokenizer_config.json")
    named = _named_tokens(config, _read_json(folder / "special_tokens_map.json"))
    extra = config.get("additional_special_tokens") or config.get("extra_special_tokens") or []
    declared = [token for token in (config.get("added_tokens_decoder") or {}).values() if token.get("special")]
    texts = map(_text, [*named.values(), *extra, *declared])
    add_known_special_tokens(backend, [text for text in texts if text is not None])
    if "add_bos_token" in config or "add_eos_token" in config:
        # An explicit wish replaces the template that tokenizer.json carries, as it does in transformers.
        set_bos_eos(
            backend,
            bos=named.get("bos_token") if config.get("add_bos_token") else None,
            eos=named.get("eos_token") if config.get("add_eos_token") else None,
        )
    return TokenizerParts(
        backend=backend,
        bos_token_id=_id_of(backend, named.get("bos_token")),
        eos_token_ids=_eos_ids(folder, _id_of(backend, named.get("eos_token"))),
        named_tokens=named,
        chat_templates=_chat_templates(folder, config),
    )


def _read_backend(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        hint = ""
        if (folder / "tokenizer.model").is_file():
            hint = (
                "; it has a SentencePiece tokenizer.model, which transformers converts: "
                "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
            )
        raise ModelNotFoundError(f"{folder} has no tokenizer.json{hint}")
    try:
        backend = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more specific
        raise CorruptModelError(f"{path}: not a tokenizer.json that can be read ({error}); fetch it again") from error
    backend.no_truncation()  # training-time settings, which some files carry along
    backend.no_padding()
    return backend


def _read_json(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}


def _text(token: Any) -> str | None:
    """A token is written as its text, or as an object with the text under "content"."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _named_tokens(config: dict[str, Any], special_tokens_map: dict[str, Any]) -> dict[str, str]:
    named = {role: _text(config.get(role, special_tokens_map.get(role))) for role in NAMED_TOKENS}
    return {role: text for role, text in named.items() if text is not None}


def _id_of(backend: Tokenizer, text: str | None) -> int | None:
    return None if text is None else backend.token_to_id(text)


def _eos_ids(folder: Path, eos_token_id: int | None) -> tuple[int, ...]:
    path = folder / "generation_config.json"
    own = () if eos_token_id is None else (eos_token_id,)
    return tuple(dict.fromkeys([*own, *Fields(_read_json(path), path).token_ids("eos_token_id")]))


def _chat_templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return {"default": file.read_text(encoding="utf-8")}
    template = config.get("chat_template")
    if isinstance(template, str):
        return {"default": template}
    return {entry["name"]: entry["template"] for entry in template or []}
