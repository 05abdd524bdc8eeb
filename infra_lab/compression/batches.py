"""What to train on: random windows of a text, by default of the help texts that no evaluation reads."""

from collections.abc import Callable, Iterator, Sequence

import torch

from infra_lab.errors import ConfigError
from infra_lab.quantization.calibration import help_texts


def training_tokens(encode: Callable[[str], list[int]], text: str | None = None) -> list[int]:
    """Return the token ids of `text`, or of the half of Python's help texts that models are not judged on."""
    return encode(help_texts("calibration") if text is None else text)


def random_windows(token_ids: Sequence[int], *, batch_size: int, length: int, seed: int = 0) -> Iterator[torch.Tensor]:
    """Yield without end batches of windows from anywhere in a text, [batch_size, length] int64; the seed decides which.

    Raises ConfigError, before the first batch, if the text is shorter than a window, or for sizes below 1 and 2.
    """
    if batch_size < 1 or length < 2:
        raise ConfigError(f"batches of {batch_size} windows of {length} tokens; at least 1 of 2 are needed")
    if len(token_ids) < length:
        raise ConfigError(
            f"the text has {len(token_ids)} tokens, windows {length}; give a longer text, or shorter windows"
        )
    return _windows(torch.tensor(token_ids), batch_size, length, torch.Generator().manual_seed(seed))


def _windows(stream: torch.Tensor, batch_size: int, length: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    while True:
        starts = torch.randint(len(stream) - length + 1, (batch_size, 1), generator=generator)
        yield stream[starts + torch.arange(length)]
