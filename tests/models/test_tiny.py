"""The bundled model is what it says: a small Llama that transformers loads, and that has learnt something."""

import math
from collections import Counter

import pytest
import torch
import transformers

from infra_lab.data import data_path
from infra_lab.models.tokenizer import load_tokenizer
from tests.models.hf_models import load_folder, logits_of

TEXT = (
    "Return the number of items in a container. The argument may be a sequence (such as a string, bytes, tuple, list, or "
    "range) or a collection (such as a dictionary, set, or frozen set). Raises TypeError if the object has no length. "
)


def test_size_and_files() -> None:
    folder = data_path("tiny")
    assert (folder / "model.safetensors").stat().st_size <= 4_000_000
    assert {path.name for path in folder.iterdir()} >= {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"
    }  # fmt: skip
    assert not (folder / "__init__.py").exists()


def test_transformers_loads_the_same_model() -> None:
    folder = data_path("tiny")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ours = load_folder(folder)
    tokens = load_tokenizer(folder).encode(TEXT)
    with torch.no_grad():
        expected = theirs(torch.tensor([tokens])).logits[0]
    assert type(theirs).__name__ == "LlamaForCausalLM"
    assert theirs.num_parameters() == ours.config.num_parameters
    assert (logits_of(ours, tokens) - expected).abs().max() < 1e-3


@pytest.mark.parametrize("text", [TEXT, "你好，世界 🌍👩‍🚀 ñ\r\n\t\x00 é", ""])
def test_a_byte_is_a_token(text: str) -> None:
    tokenizer = load_tokenizer(data_path("tiny"))
    tokens = tokenizer.encode(text, add_special_tokens=False)
    assert tokens == list(text.encode())
    assert tokenizer.decode(tokens) == text
    assert transformers.AutoTokenizer.from_pretrained(data_path("tiny"))(text).input_ids == tokens


def test_it_has_learnt_english() -> None:
    """Bits per byte on a text that is not in its training data, against coding each byte by its frequency in that text."""
    model = load_folder(data_path("tiny"))
    tokens = list(TEXT.encode())
    logprobs = torch.log_softmax(logits_of(model, tokens)[:-1].double(), dim=-1)
    bits = -logprobs[torch.arange(len(tokens) - 1), torch.tensor(tokens[1:])].mean().item() / math.log(2)
    counts = Counter(tokens)
    order_zero = -sum(n / len(tokens) * math.log2(n / len(tokens)) for n in counts.values())
    assert bits < 0.6 * order_zero
