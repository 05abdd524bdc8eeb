"""How a text is cut into words before BPE, for each name that a GGUF file gives it (`tokenizer.ggml.pre`).

BPE merges within a word and never across, so the cut decides what a model has seen as one token. Cutting differently
still gives valid tokens, only not those the model was trained on; an unknown name is therefore refused, never guessed.

What stands behind a name is what the models' own tokenizer.json says, also where other readers of GGUF simplify:

    gpt2     contractions, words, numbers, punctuation, each with the one space before it (Radford 2019)
    smollm   single digits first, then gpt2; so the spaces before a number are a token of their own
    llama3   numbers in groups of three digits; a word of the vocabulary is taken whole, without going through merges
    qwen2    as llama3 with single digits, after NFC normalization
"""

from dataclasses import dataclass
from typing import Final

from tokenizers import Regex, normalizers, pre_tokenizers


@dataclass(frozen=True, slots=True, kw_only=True)
class PreTokenizer:
    """What comes before the merges, and how these models use them."""

    splitter: pre_tokenizers.PreTokenizer
    normalizer: normalizers.Normalizer | None = None
    takes_known_words_whole: bool = False
    adds_bos: bool = False
    """Whether a text starts with bos if the file does not say."""


def _split_on(numbers: str) -> pre_tokenizers.PreTokenizer:
    """Return the splitter of the GPT-4 family; `numbers` is the pattern that they differ in."""
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"  # English contractions
        r"|[^\r\n\p{L}\p{N}]?\p{L}+"  # a word, with the one space or sign before it
        rf"|{numbers}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*"  # punctuation, with the line ends after it
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"  # white space, whose last space goes to the word that follows
    )
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), behavior="isolated"), to_bytes])


_gpt2_splitter = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
_GPT2: Final = PreTokenizer(splitter=_gpt2_splitter)
_SMOLLM: Final = PreTokenizer(
    splitter=pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2_splitter])
)
_LLAMA3: Final = PreTokenizer(splitter=_split_on(r"\p{N}{1,3}"), takes_known_words_whole=True, adds_bos=True)
_QWEN2: Final = PreTokenizer(splitter=_split_on(r"\p{N}"), normalizer=normalizers.NFC())

NAMES: Final = {
    "default": _GPT2,
    "gpt-2": _GPT2,
    "smollm": _SMOLLM,
    "starcoder": _SMOLLM,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
}
"""`tokenizer.ggml.pre` → its meaning. Files from before that key existed count as "default"."""
