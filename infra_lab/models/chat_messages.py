"""Checks the messages of a chat before a template sees them.

Templates are lenient where they should not be: a missing role prints as nothing, a number as its digits, an image as a
Python dict. Such a chat gets an answer, only not to what was asked, so it is refused here instead.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from infra_lab.errors import InvalidRequestError


def plain_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages as fresh dicts of plain JSON values, text parts joined by line ends.

    Raises InvalidRequestError, naming the message by its index, for an empty chat, a message that is not a dict, a
    role that is missing, a content that is not text, or a value that JSON does not have.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise InvalidRequestError(f"messages is a {type(messages).__name__}; expected a list of messages")
    if not messages:
        raise InvalidRequestError('messages is empty; expected at least one, such as {"role": "user", "content": "Hi"}')
    return [_plain_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def plain_json(value: Any, where: str) -> Any:
    """Return a deep copy of a JSON value; raises InvalidRequestError, naming the place, for any other type."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # an enum's methods are nothing for a template
    if isinstance(value, Mapping):
        return {str(key): plain_json(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise InvalidRequestError(
        f"{where} is a {type(value).__name__}; expected what JSON has: text, numbers, lists, dicts"
    )


def _plain_message(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InvalidRequestError(f'{where} is a {type(message).__name__}; expected a dict with "role" and "content"')
    plain: dict[str, Any] = plain_json(message, where)
    role = plain.get("role")
    if not isinstance(role, str) or not role:
        raise InvalidRequestError(f'{where} has the role {role!r}; expected "system", "user", "assistant" or "tool"')
    content = plain.get("content")
    if content is None:
        if not plain.get("tool_calls"):
            raise InvalidRequestError(
                f'{where} has no content; expected text (only a message with "tool_calls" may omit it)'
            )
    elif isinstance(content, list):
        plain["content"] = "\n".join(_part_text(part, f"{where}.content[{i}]") for i, part in enumerate(content))
    elif not isinstance(content, str):
        raise InvalidRequestError(f"{where}.content is a {type(content).__name__}; expected text")
    return plain


def _part_text(part: Any, where: str) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    raise InvalidRequestError(
        f'{where} is of type {kind!r}; this engine takes text only: {{"type": "text", "text": ...}}'
    )
