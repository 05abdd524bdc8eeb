"""Ids and text equal those of transformers' tokenizer of the same files."""

import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from infra_lab.data import data_path
from infra_lab.errors import CorruptModelError, InvalidRequestError, ModelNotFoundError, UnsupportedModelError
from infra_lab.models.detokenizer import IncrementalDetokenizer
from infra_lab.models.fetch import resolve_model
from infra_lab.models.gguf_file import GGUFFile
from infra_lab.models.gguf_tokenizer import gguf_tokenizer
from infra_lab.models.tokenizer import Tokenizer, load_tokenizer
from tests.models.tokenizer_folders import TEXTS, byte_fallback_folder, byte_level_folder

ANY_TEXT = st.text(alphabet=st.characters(codec="utf-8"), max_size=40)
PIECES = st.sampled_from(
    [*TEXTS, "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<|im", "你好", "👩‍🚀", " ", "\ud83d"]
)
MIXED_TEXT = st.lists(st.one_of(PIECES, st.text(max_size=8)), max_size=8).map("".join)
"""Scripts, emoji, special tokens and halves of surrogate pairs, in any order."""


class Pair:
    """Our tokenizer and transformers' of the same files."""

    def __init__(self, path: Path) -> None:
        self.ours = load_tokenizer(path)
        if path.is_dir():
            self.theirs: Any = transformers.AutoTokenizer.from_pretrained(path)
        else:
            self.theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@pytest.fixture(
    scope="module", params=["tiny", "byte-level", "byte-fallback", pytest.param("smollm2", marks=pytest.mark.smollm2)]
)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    if request.param == "tiny":
        return Pair(data_path("tiny"))
    if request.param == "byte-level":
        return Pair(byte_level_folder(tmp_path_factory.mktemp("bytes")))
    if request.param == "byte-fallback":
        return Pair(byte_fallback_folder(tmp_path_factory.mktemp("fallback")))
    return Pair(resolve_model("smollm2-135m"))


def is_comparable(pair: Pair, text: str) -> bool:
    """SmolLM2's tokenizer.json cuts a text at every digit, "½" and "٣" included, which transformers does not take over
    from the GGUF file. For ASCII digits it makes no difference, since the vocabulary has no token with two of them.
    """
    is_from_gguf = len(pair.ours.named_tokens) > 0 and pair.ours.vocab_size == 49_152
    return not (is_from_gguf and any(character.isnumeric() and not character.isascii() for character in text))


@pytest.mark.smollm2
def test_smollm2_cuts_at_every_digit() -> None:
    tokenizer = load_tokenizer(resolve_model("smollm2-135m"))
    assert [tokenizer.token_text(token) for token in tokenizer.encode("a 12 ½")] == ["a", "Ġ", "1", "2", "Ġ", "Â½"]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
@pytest.mark.parametrize("add_special_tokens", [True, False])
def test_encode(pair: Pair, text: str, add_special_tokens: bool) -> None:
    if not is_comparable(pair, text):
        text = text.replace("½ ² ٣", "")
    ours = pair.ours.encode(text, add_special_tokens=add_special_tokens)
    assert ours == pair.theirs.encode(text, add_special_tokens=add_special_tokens)


@settings(max_examples=200, deadline=None)
@given(text=ANY_TEXT)
def test_encode_any_text(pair: Pair, text: str) -> None:
    if not is_comparable(pair, text):
        return
    assert pair.ours.encode(text, add_special_tokens=False) == pair.theirs.encode(text, add_special_tokens=False)


@settings(max_examples=200, deadline=None)
@given(text=MIXED_TEXT, add_special_tokens=st.booleans())
def test_encode_is_the_librarys_encode(pair: Pair, text: str, add_special_tokens: bool) -> None:
    """The library has a call that holds the GIL and one that does not; the plain one is the oracle."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        with pytest.raises(InvalidRequestError, match="lone surrogate"):
            pair.ours.encode(text, add_special_tokens=add_special_tokens)
    else:
        expected = pair.ours._backend.encode(text, add_special_tokens=add_special_tokens).ids
        assert pair.ours.encode(text, add_special_tokens=add_special_tokens) == expected


def test_a_long_text_leaves_the_other_threads_their_turn() -> None:
    """It held the GIL: a server that had moved it to a thread stood still all the same."""
    tokenizer, text = load_tokenizer(data_path("tiny")), TEXTS[0] * 40_000
    order, begun, interval_s = list[str](), threading.Event(), sys.getswitchinterval()

    def encode() -> None:
        begun.set()
        tokenizer.encode(text)
        order.append("the text is encoded")

    thread = threading.Thread(target=encode)
    sys.setswitchinterval(30.0)  # nobody takes the GIL from a thread; it must be let go
    try:
        thread.start()
        begun.wait()
        order.append("another thread has run")
        thread.join()
    finally:
        sys.setswitchinterval(interval_s)
    assert order == ["another thread has run", "the text is encoded"]


@settings(max_examples=200, deadline=None)
@given(data=st.data(), skip=st.booleans())
def test_decode_any_tokens(pair: Pair, data: st.DataObject, skip: bool) -> None:
    """Random ids are mostly broken UTF-8."""
    ids = data.draw(st.lists(st.integers(0, pair.ours.vocab_size - 1), max_size=30))
    theirs = pair.theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
    assert pair.ours.decode(ids, skip_special_tokens=skip) == theirs


@settings(max_examples=200, deadline=None)
@given(data=st.data(), skip=st.booleans())
def test_detokenizer_gives_the_whole_decode_and_never_half_a_character(
    pair: Pair, data: st.DataObject, skip: bool
) -> None:
    random_ids = st.lists(st.integers(0, pair.ours.vocab_size - 1), max_size=30)
    ids = data.draw(st.one_of(random_ids, ANY_TEXT.map(lambda text: pair.ours.encode(text))))
    detokenizer = IncrementalDetokenizer(pair.ours, skip_special_tokens=skip)
    pieces = [detokenizer.add(token_id) for token_id in ids]
    whole = pair.ours.decode(ids, skip_special_tokens=skip)
    shown = "".join(pieces)
    assert whole.startswith(shown), "what was shown is final"
    assert shown + detokenizer.flush() == whole


def test_detokenizer_holds_a_character_until_it_is_complete() -> None:
    tokenizer = load_tokenizer(data_path("tiny"))
    detokenizer = IncrementalDetokenizer(tokenizer)
    assert [detokenizer.add(byte) for byte in "a你".encode()] == ["a", "", "", "你"]
    assert [detokenizer.add(byte) for byte in "好".encode()[:2]] == ["", ""]
    assert detokenizer.flush() == "\ufffd"


@given(text=ANY_TEXT)
@settings(max_examples=100, deadline=None)
def test_token_bytes_join_to_the_text(pair: Pair, text: str) -> None:
    ids = pair.ours.encode(text, add_special_tokens=False)
    if pair.ours.is_byte_level and pair.ours.decode(ids) == text:  # SmolLM2's vocabulary lacks a few bytes
        assert b"".join(pair.ours.token_bytes(token_id) for token_id in ids) == text.encode()


@pytest.mark.smollm2
def test_special_tokens_of_smollm2() -> None:
    tokenizer = load_tokenizer(resolve_model("smollm2-135m"))
    assert tokenizer.eos_token_ids == (2,)
    assert tokenizer.encode("<|im_end|>") == [2]
    assert tokenizer.vocab_size == 49_152


def test_lone_surrogates_and_other_types_are_refused() -> None:
    tokenizer = load_tokenizer(data_path("tiny"))
    with pytest.raises(InvalidRequestError, match=r"lone surrogate U\+D800 at character 1"):
        tokenizer.encode("a\ud800")
    with pytest.raises(InvalidRequestError, match="is a bytes; expected str"):
        tokenizer.encode(b"a")  # type: ignore[arg-type]


class TestDamage:
    def test_folders(self, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFoundError, match=r"tokenizer\.json"):
            load_tokenizer(tmp_path)
        for content in ("", "{", '{"model": 5}'):
            (tmp_path / "tokenizer.json").write_text(content)
            with pytest.raises(CorruptModelError, match=r"tokenizer\.json"):
                load_tokenizer(tmp_path)
        byte_level_folder(tmp_path)
        (tmp_path / "tokenizer_config.json").write_text("[")
        with pytest.raises(CorruptModelError, match=r"tokenizer_config\.json"):
            load_tokenizer(tmp_path)

    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            ({"tokenizer.ggml.model": "llama"}, UnsupportedModelError, "tokenizer model 'llama' is not supported"),
            ({"tokenizer.ggml.pre": "made-up"}, UnsupportedModelError, "pre-tokenizer 'made-up' is not known"),
            ({"tokenizer.ggml.merges": None}, CorruptModelError, "merges"),
            ({"tokenizer.ggml.merges": ["no such"]}, CorruptModelError, "m.gguf"),
            ({"tokenizer.ggml.tokens": ["a", "a"]}, CorruptModelError, "m.gguf"),
            ({"tokenizer.ggml.eos_token_id": 99}, CorruptModelError, "eos"),
        ],
        ids=str,
    )
    def test_gguf(self, changes: dict[str, Any], error: type[Exception], message: str) -> None:
        metadata: dict[str, Any] = {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": ["a", "b", "ab", "<e>"],
            "tokenizer.ggml.merges": ["a b"],
            "tokenizer.ggml.token_type": [1, 1, 1, 3],
            "tokenizer.ggml.eos_token_id": 3,
        }
        assert Tokenizer(gguf_tokenizer(metadata, "m.gguf")).encode("abb<e>") == [2, 1, 3]
        metadata = {name: value for name, value in {**metadata, **changes}.items() if value is not None}
        with pytest.raises(error, match=message):
            gguf_tokenizer(metadata, "m.gguf")


@pytest.mark.smollm2
def test_metadata_of_the_real_file_is_plain_python() -> None:
    path = resolve_model("smollm2-135m")
    metadata = GGUFFile(path).metadata
    assert metadata["general.architecture"] == "llama"
    assert len(metadata["tokenizer.ggml.tokens"]) == 49_152
