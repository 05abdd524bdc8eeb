"""Where each token begins in the text that a client got, in characters.

    token      'a'   f0 9f   99   82   ' b'
    text       a     🙂                 ␣b
    offset     0     1       1    1     2

A token may be a part of a character: then it begins where the character stands. So positions are counted in the text, not
in what the tokens are called. A token that leaves no text, such as a special one, begins where the next one does; those
of a stop string, which was cut off, lie beyond the end.
"""

import codecs

from infra_lab.models.tokenizer import Tokenizer

_CONTINUES, _TOP_BITS = 0x80, 0xC0
"""Every byte of a character's UTF-8 but the first begins with the bits 10."""


class TextOffsets:
    """Follows one choice, token by token."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_token_ids if skip_special_tokens else frozenset()
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._position = 0
        self._is_first = True

    def add(self, token_id: int) -> int:
        """Take the next token; return its position."""
        raw = b"" if token_id in self._skipped else self._tokenizer.token_bytes(token_id)
        if not raw:
            return self._position
        if self._is_first and not self._tokenizer.is_byte_level:
            # SentencePiece puts a space before a text's first word, and its decoder takes it away again.
            raw = raw if self._tokenizer.decode([token_id]).startswith(" ") else raw.removeprefix(b" ")
        self._is_first = False
        if raw and raw[0] & _TOP_BITS != _CONTINUES:  # what was begun before is never completed: it is one U+FFFD
            self._position += len(self._utf8.decode(b"", final=True))
        position = self._position
        self._position += len(self._utf8.decode(raw))
        return position
