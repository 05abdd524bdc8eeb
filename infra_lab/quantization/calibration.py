"""What models are calibrated and judged on: Python's own help texts, which every Python has.

`pydoc_data.topics` repeats itself: the long chapters contain the short ones word by word. So a paragraph counts where it comes
first, and topics go by turns to one half of the text or the other: what a model is judged on it has not been calibrated on.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal

import torch

from infra_lab.errors import ConfigError

Half = Literal["calibration", "evaluation"]
NUM_SLICES, SLICE_TOKENS = 128, 64
"""Many short texts: the first token of each, at which all others look, must be seen often. GPTQ in 4 bits on SmolLM2 is at
KL 0.080, 0.062, 0.055 with 32 texts of 256 tokens, 64 of 128, 128 of 64."""


@cache
def help_texts(half: Half) -> str:
    """Return one half of the help texts, about 180,000 characters; no paragraph is in both."""
    from pydoc_data.topics import topics

    seen: set[str] = set()
    halves: dict[str, list[str]] = {"calibration": [], "evaluation": []}
    for index, name in enumerate(sorted(topics)):
        texts = (text.strip("\n") for text in topics[name].split("\n\n"))
        paragraphs = [text for text in texts if text.strip() and text not in seen]
        seen.update(paragraphs)
        halves["evaluation" if index % 2 else "calibration"] += paragraphs
    return "\n\n".join(halves[half])


def token_slices(token_ids: Sequence[int], num_slices: int, length: int) -> torch.Tensor:
    """Cut `num_slices` pieces of `length` tokens out of a text, spread evenly over it: [num_slices, length] int64.

    The same every time, and no two overlap. Raises ConfigError if the text is too short.
    """
    if num_slices < 1 or length < 1:
        raise ConfigError(f"{num_slices} slices of {length} tokens; both must be at least 1")
    if len(token_ids) < num_slices * length:
        raise ConfigError(
            f"{num_slices} slices of {length} tokens are {num_slices * length:,}, and the text has {len(token_ids):,}; "
            "give a longer text, or take fewer or shorter slices"
        )
    stride = (len(token_ids) - length) / max(1, num_slices - 1)
    starts = [int(i * stride) for i in range(num_slices)]
    return torch.tensor([token_ids[start : start + length] for start in starts])


def calibration_tokens(
    encode: Callable[[str], list[int]],
    *,
    num_slices: int = NUM_SLICES,
    length: int = SLICE_TOKENS,
    text: str | None = None,
) -> torch.Tensor:
    """Return what to calibrate on, [num_slices, length] int64: slices of `text`, or of the calibration half of the help texts.

    Raises ConfigError for a text that is too short.
    """
    return token_slices(encode(help_texts("calibration") if text is None else text), num_slices, length)
