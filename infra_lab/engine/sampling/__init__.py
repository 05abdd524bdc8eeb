"""Choosing tokens: penalties and masks, filters, the draw, and log-probabilities."""

from infra_lab.engine.sampling.grammar import GrammarCompiler
from infra_lab.engine.sampling.sampler import SampledTokens, Sampler
from infra_lab.engine.sampling.validation import validate

__all__ = ["GrammarCompiler", "SampledTokens", "Sampler", "validate"]
