"""Perplexity: exp of the mean negative log-likelihood of a text's tokens, in sliding windows."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from infra_lab.engine.llm import LLM
from infra_lab.engine.scoring import score_chunks
from infra_lab.evaluation.windows import sliding_windows
from infra_lab.quantization.calibration import help_texts, token_slices

WINDOW, STRIDE = 512, 256
CHUNK_TOKENS = 256

Progress = Callable[[int, int], None]
"""Called with (done, total) tokens."""


def evaluation_tokens(encode: Callable[[str], list[int]], num_tokens: int) -> list[int]:
    """Return the first tokens of the half of Python's help texts that nothing is calibrated on.

    Raises ConfigError if it has fewer.
    """
    first: list[int] = token_slices(encode(help_texts("evaluation")), 1, num_tokens)[0].tolist()
    return first


class ScoredTokens(NamedTuple):
    """Some consecutive tokens of a text and what the model expected in their places."""

    targets: torch.Tensor
    """[n] int64."""
    log_probs: torch.Tensor
    """[n, V] float32; row i is the distribution that targets[i] was drawn from, if the model were right."""

    @property
    def nll(self) -> torch.Tensor:
        """-log p of the targets, [n] in nats, on the CPU."""
        return -self.log_probs.gather(1, self.targets.unsqueeze(1)).squeeze(1).cpu()


def scored_tokens(llm: LLM, token_ids: Sequence[int], *, window: int, stride: int) -> Iterator[ScoredTokens]:
    """Yield all tokens of a text but the first, in order, each once.

    Raises ConfigError for impossible windows, InvalidRequestError for one longer than the engine's context.
    """
    for begin, first_scored, end in sliding_windows(len(token_ids), window, stride):
        piece = list(token_ids[begin : end - 1])  # the last token is only predicted
        for start, log_probs in score_chunks(llm, piece, first_row=first_scored - 1 - begin, chunk_tokens=CHUNK_TOKENS):
            first_target = begin + start + 1
            targets = torch.tensor(token_ids[first_target : first_target + len(log_probs)], device=log_probs.device)
            yield ScoredTokens(targets, log_probs)


@dataclass(frozen=True, slots=True)
class Perplexity:
    """A text's tokens scored."""

    nll: torch.Tensor
    """[T - 1] float32: -log p of each token but the first, in nats."""

    @property
    def value(self) -> float:
        """exp(mean nll): as if the model chose among so many equally likely tokens."""
        return float(self.nll.double().mean().exp())


def perplexity(
    llm: LLM,
    token_ids: Sequence[int],
    *,
    window: int = WINDOW,
    stride: int = STRIDE,
    progress: Progress | None = None,
) -> Perplexity:
    """Score a text; the engine must be idle. Raises what `scored_tokens` raises."""
    pieces: list[torch.Tensor] = []
    done = 0
    for scored in scored_tokens(llm, token_ids, window=window, stride=stride):
        pieces.append(scored.nll)
        done += len(scored.targets)
        if progress is not None:
            progress(done, len(token_ids) - 1)
    return Perplexity(torch.cat(pieces))
