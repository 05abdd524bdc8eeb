"""Messages of a chat, written piece by piece in the format of the model's chat template.

A template renders whole chats, and a program writes one from its beginning to its end, with parts that are generated. So
each chat is rendered with a mark in place of every content, and what stands between two marks is what to write:

    <|im_start|>user\\n MARK <|im_end|>\\n<|im_start|>assistant\\n MARK <|im_end|>\\n
    └── open(user) ──┘      └ close() ──┘└─ open(assistant) ────┘      └ close() ┘
"""

from infra_lab.errors import InvalidRequestError, UnsupportedModelError
from infra_lab.models.tokenizer import Tokenizer

MARK = "content7f3a1c"
"""Stands for a message's content: no template writes this by itself."""


class Chat:
    """The roles of the messages so far, and whether the last one is still being written."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.is_open = False
        self._tokenizer = tokenizer
        self._roles: list[str] = []
        self._closing = ""

    def open(self, role: str) -> str:
        """Begin a message; return what comes before its content.

        An assistant's begins with what the model is asked to go on from (the generation prompt).

        Raises InvalidRequestError inside another message, for a model without chat template, or if the template refuses the
        role here; UnsupportedModelError for a template whose chats do not grow at their end.
        """
        if self.is_open:
            raise InvalidRequestError(f"a {role} message inside the {self._roles[-1]} message; close that one first")
        roles = [*self._roles, role]
        opening = self._render(roles)[-2]
        if role == "assistant" and self._roles:
            opening = self._render(self._roles, add_generation_prompt=True)[-1]
        if not opening.startswith(self._closing):
            raise self._unsupported(
                f"ends a message with {self._closing!r}, but writes {opening!r} before the next one"
            )
        opening = opening[len(self._closing) :]
        self._roles, self.is_open = roles, True
        return opening

    def close(self) -> str:
        """End the open message; return what comes after its content."""
        self._closing = self._render(self._roles)[-1]
        self.is_open = False
        return self._closing

    def copy(self) -> "Chat":
        """Return one that goes on from here on its own."""
        other = Chat(self._tokenizer)
        other.is_open, other._roles, other._closing = self.is_open, list(self._roles), self._closing
        return other

    def _render(self, roles: list[str], *, add_generation_prompt: bool = False) -> list[str]:
        """Return what the template writes before, between and after the contents."""
        messages = [{"role": role, "content": MARK} for role in roles]
        text = self._tokenizer.apply_chat_template(messages, add_generation_prompt=add_generation_prompt)
        pieces = text.split(MARK)
        if len(pieces) != len(roles) + 1:
            raise self._unsupported(f"writes {len(pieces) - 1} of the contents of {len(roles)} messages")
        return pieces

    def _unsupported(self, problem: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"the model's chat template {problem}, so a chat cannot be written piece by piece; write it with +="
        )
