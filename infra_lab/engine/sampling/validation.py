"""What can only be checked once the vocabulary is known."""

from infra_lab.errors import InvalidRequestError
from infra_lab.sampling_params import SamplingParams


def validate(params: SamplingParams, vocab_size: int) -> None:
    """Raise InvalidRequestError if `params` names a token that the model does not have."""
    for field, token_ids in (("logit_bias", params.logit_bias), ("stop_token_ids", params.stop_token_ids)):
        for token_id in token_ids:
            if not 0 <= token_id < vocab_size:
                raise InvalidRequestError(
                    f"{field} names token {token_id}, which is outside the vocabulary of {vocab_size} tokens"
                )
