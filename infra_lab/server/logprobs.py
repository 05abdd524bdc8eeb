"""Log-probabilities in the two shapes of OpenAI's API."""

from collections.abc import Sequence
from typing import Any

from infra_lab.models.tokenizer import Tokenizer
from infra_lab.scheduler.plan import TokenLogprobs
from infra_lab.server.text_offsets import TextOffsets

LOWEST = -9999.0
"""OpenAI's number for "never": JSON has no minus infinity."""


def token_string(tokenizer: Tokenizer, token_id: int) -> tuple[str, list[int]]:
    """Return a token's text and bytes; a part of a character is written as "bytes:\\xf0\\x9f"."""
    if token_id in tokenizer.special_token_ids:
        text = tokenizer.token_text(token_id) or ""
        return text, list(text.encode())
    raw = tokenizer.token_bytes(token_id)
    try:
        return raw.decode(), list(raw)
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw), list(raw)


def chat_logprobs(tokenizer: Tokenizer, entries: Sequence[TokenLogprobs], num_top: int) -> dict[str, Any]:
    """The chat API's: one object a token, with its alternatives."""

    def one(token_id: int, logprob: float) -> dict[str, Any]:
        text, raw = token_string(tokenizer, token_id)
        return {"token": text, "logprob": max(logprob, LOWEST), "bytes": raw}

    content = [
        {**one(entry.token_id, entry.logprob), "top_logprobs": [one(*pair) for pair in entry.top[:num_top]]}
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(
    tokenizer: Tokenizer, entries: Sequence[TokenLogprobs], num_top: int, offsets: TextOffsets
) -> dict[str, Any]:
    """The completions API's: parallel lists. `offsets` has followed the choice up to here, and does so from here on.

    As with OpenAI, the chosen token is among its alternatives even where it is not one of the most probable.
    """
    return {
        "tokens": [token_string(tokenizer, entry.token_id)[0] for entry in entries],
        "token_logprobs": [max(entry.logprob, LOWEST) for entry in entries],
        "top_logprobs": [
            {
                token_string(tokenizer, i)[0]: max(logprob, LOWEST)
                for i, logprob in (*entry.top[:num_top], (entry.token_id, entry.logprob))
            }
            for entry in entries
        ]
        if num_top
        else None,
        "text_offset": [offsets.add(entry.token_id) for entry in entries],
    }
