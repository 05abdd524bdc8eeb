"""A token's offset is a position in the text, whatever part of a character the token is."""

from itertools import accumulate
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from infra_lab.models.tokenizer import Tokenizer, load_tokenizer
from infra_lab.server.text_offsets import TextOffsets
from tests.models.tokenizer_folders import TEXTS, byte_fallback_folder, byte_level_folder
from tests.server.live import Live, tiny_tokenizer

EMOJI = "a👩‍🚀é 你🙂"
SHOWN = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="<"), min_size=1, max_size=20)


@pytest.fixture(scope="module", params=["tiny", "byte-level", "byte-fallback"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    if request.param == "tiny":
        return tiny_tokenizer()
    make_folder = byte_level_folder if request.param == "byte-level" else byte_fallback_folder
    return load_tokenizer(make_folder(tmp_path_factory.mktemp("tokenizer")))


def offsets_of(tokenizer: Tokenizer, token_ids: list[int], *, skip_special_tokens: bool = True) -> list[int]:
    offsets = TextOffsets(tokenizer, skip_special_tokens=skip_special_tokens)
    return [offsets.add(token_id) for token_id in token_ids]


@settings(max_examples=200, deadline=None)
@given(text=SHOWN)
@example(EMOJI)
@example(" two  spaces ")
@example(TEXTS[3])
def test_as_many_characters_as_were_complete_before_it(tokenizer: Tokenizer, text: str) -> None:
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    if tokenizer.decode(token_ids) != text:  # a vocabulary may normalize
        return
    raw = [tokenizer.token_bytes(token_id) for token_id in token_ids]
    invisible = sum(map(len, raw)) - len(text.encode())  # SentencePiece's first space
    before = [max(0, length - invisible) for length in accumulate(map(len, raw), initial=0)][:-1]
    assert offsets_of(tokenizer, token_ids) == [
        len(text.encode()[:length].decode(errors="ignore")) for length in before
    ]


@settings(max_examples=300, deadline=None)
@given(data=st.data(), skip=st.booleans())
def test_a_whole_token_stands_where_it_says_even_amid_broken_characters(data: st.DataObject, skip: bool) -> None:
    tokenizer = tiny_tokenizer()
    token_ids = data.draw(
        st.lists(st.sampled_from([65, 32, 0xC3, 0xA9, 0xE4, 0xBD, 0xF0, 0x9F, 256, 259]), max_size=30)
    )
    text = tokenizer.decode(token_ids, skip_special_tokens=skip)
    offsets = offsets_of(tokenizer, token_ids, skip_special_tokens=skip)
    assert offsets == sorted(offsets)
    for token_id, offset in zip(token_ids, offsets, strict=True):
        if token_id in tokenizer.special_token_ids:
            assert skip or text[offset:].startswith(tokenizer.token_text(token_id) or "?")
        elif token_id < 128:
            assert text[offset] == chr(token_id)
        else:
            assert text[offset] == "\ufffd" or ord(text[offset]) > 127


@pytest.mark.parametrize("stream", [False, True])
def test_openais_client_finds_every_token_in_its_text(tiny: Live, stream: bool) -> None:
    """Half an emoji counted as the fourteen characters of its name, "bytes:\\xf0\\x9f"."""
    pytest.importorskip("xgrammar")
    create, body = tiny.openai().completions.create, {"structured_outputs": {"choice": [EMOJI]}}
    fields: dict[str, Any] = {"model": "sim", "prompt": "x", "max_tokens": 60, "logprobs": 1, "extra_body": body}
    choices = [one.choices[0] for one in (create(**fields, stream=True) if stream else [create(**fields)])]
    logprobs = [choice.logprobs for choice in choices if choice.logprobs is not None]
    tokens = [token for some in logprobs for token in some.tokens or []]
    offsets = [offset for some in logprobs for offset in some.text_offset or []]
    assert "".join(choice.text for choice in choices) == EMOJI
    assert [token for token in tokens if token.startswith("bytes:")], "there are parts of characters"
    expected = [index for index, character in enumerate(EMOJI) for _ in character.encode()]
    assert offsets == [*expected, len(EMOJI)], "and the end of sequence, which leaves no text"
