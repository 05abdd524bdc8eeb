"""SmolLM2-135M from its GGUF file against transformers, which loads and dequantizes the file by itself."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from infra_lab import LLM, SamplingParams
from infra_lab.models.fetch import resolve_model
from tests.models.hf_models import load_folder, logits_of

pytestmark = pytest.mark.smollm2

QUESTIONS = [
    "What is the capital of France?",
    "Explain gravity to a child.",
    "Write a haiku about the sea.",
    "List three uses of a hammer.",
    "How do airplanes fly?",
    "Translate 'good morning' into Spanish.",
    "Why is the sky blue?",
    "Give me a recipe for pancakes.",
    "What does a compiler do?",
    "Tell me about the Roman Empire.",
]
TEXTS = [
    "Once upon a time, in a small village,",
    "def fibonacci(n):\n",
    "The three laws of thermodynamics are",
    "import numpy as np\n\ndef softmax(x):",
    "In 1969, Neil Armstrong",
    "Water boils at",
    "Dear Sir or Madam,",
    "1, 1, 2, 3, 5, 8,",
    "La capital de España es",
    "你好，世界",
]


@pytest.fixture(scope="module")
def path() -> Path:
    return resolve_model("smollm2-135m")


@pytest.fixture(scope="module")
def theirs(path: Path) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="sdpa"
    )
    return model.eval()


@pytest.fixture(scope="module")
def llm(path: Path) -> LLM:
    return LLM(str(path), dtype="float32", device="cpu", max_model_len=1024, kv_cache_bytes=128 << 20)


def prompts(llm: LLM) -> list[list[int]]:
    chats = [llm.chat_token_ids([{"role": "user", "content": question}]) for question in QUESTIONS]
    return chats + [llm.encode(text) for text in TEXTS]


def test_logits_equal_transformers(path: Path, theirs: Any, llm: LLM) -> None:
    ours = load_folder(path)
    for token_ids in (prompts(llm)[0], llm.encode("The quick brown fox. " * 40)):
        with torch.no_grad():
            expected = theirs(torch.tensor([token_ids])).logits[0]
        assert (logits_of(ours, token_ids) - expected).abs().max() < 1e-3
        chunks = [5, 16, 1, len(token_ids) - 22]
        assert (logits_of(ours, token_ids, chunks) - expected).abs().max() < 1e-3


def test_greedy_text_equals_transformers(theirs: Any, llm: LLM) -> None:
    """64 tokens for each of 20 prompts; theirs one at a time, ours all in one batch."""
    requests = prompts(llm)
    outputs = llm.generate(requests, SamplingParams(max_tokens=64, temperature=0.0, ignore_eos=True))
    for token_ids, output in zip(requests, outputs, strict=True):
        with torch.no_grad():
            out = theirs.generate(
                torch.tensor([token_ids]),
                attention_mask=torch.ones(1, len(token_ids), dtype=torch.long),
                max_new_tokens=64,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        assert output.token_ids == out[0, len(token_ids) :].tolist()


def test_quantized_weights_keep_the_answer(path: Path, llm: LLM) -> None:
    question = llm.chat_token_ids([{"role": "user", "content": QUESTIONS[0]}])
    for quantization in ("int8", "rtn-int4-g32"):
        small = LLM(str(path), dtype="bfloat16", device="cpu", quantization=quantization, max_model_len=512)
        assert "Paris" in small.generate([question], SamplingParams(max_tokens=12, temperature=0.0))[0].text
