"""A changed model beside the unchanged one, token by token on the same text: perplexity, KL divergence, top-1 agreement.

Perplexity asks whether the text's own token is still likely; two models can agree on that and differ in all else. KL(full ‖
changed) compares whole distributions, needs no text that is "right", and is far less noisy: it sees every change, and only
changes. Top-1 agreement says how often greedy decoding would go on alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from infra_lab.engine.llm import LLM
from infra_lab.errors import ConfigError
from infra_lab.evaluation.perplexity import STRIDE, WINDOW, Perplexity, Progress, scored_tokens


@dataclass(frozen=True, slots=True)
class Comparison:
    """How a model does on a text, and how far it is from the reference."""

    perplexity: float
    perplexity_change: float
    """perplexity / the reference's - 1."""
    change_error: float
    """One standard error of `perplexity_change`: tokens are compared in pairs, so what is hard for both cancels."""
    kl: float
    """KL(reference ‖ model), nats a token."""
    top1_agreement: float
    """Share of tokens at which both have the same favourite."""
    num_tokens: int


class ReferenceRun:
    """What the unchanged model expected at each token of a text, kept: T · V float32, 200 MB for 1,000 tokens of SmolLM2."""

    def __init__(self, llm: LLM, token_ids: Sequence[int], *, window: int = WINDOW, stride: int = STRIDE) -> None:
        self.token_ids, self.window, self.stride = list(token_ids), window, stride
        scored = list(scored_tokens(llm, token_ids, window=window, stride=stride))
        self.log_probs = torch.cat([piece.log_probs.cpu() for piece in scored])  # [T - 1, V]
        self.nll = torch.cat([piece.nll for piece in scored])

    @property
    def perplexity(self) -> float:
        """Of the unchanged model."""
        return Perplexity(self.nll).value

    def compare(self, llm: LLM, *, progress: Progress | None = None) -> Comparison:
        """Run another model over the same windows. Raises ConfigError if its vocabulary has another size."""
        nll, kl, agrees = [], [], []
        done = 0
        for scored in scored_tokens(llm, self.token_ids, window=self.window, stride=self.stride):
            log_probs = scored.log_probs
            if log_probs.shape[1] != self.log_probs.shape[1]:
                raise ConfigError(
                    f"the reference has {self.log_probs.shape[1]:,} tokens in its vocabulary, this model "
                    f"{log_probs.shape[1]:,}; only models that share one can be compared"
                )
            expected = self.log_probs[done : done + len(log_probs)].to(log_probs.device)
            nll.append(scored.nll)
            kl.append((expected.exp() * (expected - log_probs)).sum(dim=1).cpu())
            agrees.append((expected.argmax(dim=1) == log_probs.argmax(dim=1)).cpu())
            done += len(log_probs)
            if progress is not None:
                progress(done, len(self.log_probs))
        found = torch.cat(nll).double()
        difference = found - self.nll.double()
        ratio = float(difference.mean().exp())
        return Comparison(
            perplexity=float(found.mean().exp()),
            perplexity_change=ratio - 1,
            change_error=ratio * float(difference.std()) / len(difference) ** 0.5,
            kl=float(torch.cat(kl).double().mean()),
            top1_agreement=float(torch.cat(agrees).double().mean()),
            num_tokens=len(difference),
        )
