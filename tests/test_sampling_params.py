"""Every impossible parameter is refused by name, with what was expected."""

import math
from typing import Any

import pytest

from infra_lab.errors import InvalidRequestError
from infra_lab.sampling_params import SamplingParams


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n is 0; it must be a whole number, at least 1"),
        ({"n": 1.5}, r"n is 1\.5; it must be a whole number"),
        ({"n": True}, "n is True; it must be a whole number"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": "10"}, "max_tokens is '10'"),
        ({"min_tokens": -1}, "min_tokens is -1"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens is 9, more than max_tokens, 8"),
        ({"temperature": -0.1}, r"temperature is -0\.1; it must be 0 \(greedy\) or a positive number"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, r"top_p is 0\.0; it must be in \(0, 1\]"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"top_p": math.nan}, "top_p is nan"),
        ({"min_p": -0.2}, "min_p is -0.2"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"presence_penalty": 3}, r"presence_penalty is 3; it must be in \[-2, 2\]"),
        ({"frequency_penalty": math.nan}, "frequency_penalty is nan"),
        ({"seed": 1.5}, "seed is 1.5; it must be a whole number, or None"),
        ({"logprobs": -1}, "logprobs is -1"),
        ({"logprobs": 21}, r"logprobs is 21; it must be from 0 to 20, or None"),
        ({"stop": [""]}, r"stop is \[''\]; it must be strings that are not empty"),
        ({"stop": [5]}, "stop is"),
        ({"stop_token_ids": ["x"]}, "stop_token_ids is"),
        ({"logit_bias": {1.5: 1.0}}, "logit_bias is"),
        ({"logit_bias": {3: math.nan}}, "logit_bias is"),
    ],
    ids=str,
)
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        SamplingParams(**options)


def test_borders_are_accepted() -> None:
    SamplingParams(n=1, max_tokens=None, temperature=0, top_k=0, top_p=1, min_p=1, logprobs=20, seed=-5)
    assert SamplingParams(stop="###").stop == ("###",)
    assert SamplingParams(temperature=0).is_greedy
    assert not SamplingParams(temperature=0.01).is_greedy
