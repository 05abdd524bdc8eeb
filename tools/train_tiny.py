"""Train `tiny`, the model that ships with the lab: a byte-level Llama of 1.6 million weights.

    python tools/train_tiny.py [--minutes 30] [--out datasets/tiny]

It reads text that every Python has: the reference topics behind `help()` and the docstrings of the standard library. Half
an hour on one core is enough. The model is small enough to ship and to run in tests, and big enough to write words. The
training graph is transformers' Llama; the lab's own engine only infers.
"""

import argparse
import ast
import json
import math
import random
import shutil
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

SPECIAL = ["<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>"]
BOS, EOS, IM_START, IM_END = range(256, 260)
VOCAB_SIZE = 272  # 256 bytes, the special tokens, and some to spare: a multiple of 16
CONFIG = LlamaConfig(
    vocab_size=VOCAB_SIZE,
    hidden_size=192,
    intermediate_size=512,
    num_hidden_layers=4,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=1024,
    rope_theta=10_000.0,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
    bos_token_id=BOS,
    eos_token_id=[EOS, IM_END],
)
PHASES = ((0.7, 256, 16), (1.0, 1024, 4))
"""Until which share of the time, tokens a window, windows a batch: short windows teach words fast, and then windows of the
full context teach the positions that short ones never reach."""
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def docstrings(root: Path) -> Iterator[tuple[str, str]]:
    """Yield (qualified name, docstring) of everything documented in the standard library, in a fixed order."""
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if {"site-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo"} & set(parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        module = ".".join(part for part in parts if part != "__init__")
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text and len(text) > 40:
                    yield module if isinstance(node, ast.Module) else f"{module}.{node.name}", text


def corpus() -> list[list[int]]:
    """Documents as token ids: reference topics, docstrings, and the same docstrings as questions and answers."""
    from pydoc_data.topics import topics

    documents = [[BOS, *text.encode(), EOS] for _, text in sorted(topics.items())]
    for name, text in docstrings(Path(sysconfig.get_paths()["stdlib"])):
        documents.append([BOS, *f"{name}\n\n{text}".encode(), EOS])
        first = text.split("\n\n")[0]
        question, answer = f"user\nWhat is {name}?".encode(), f"assistant\n{first}".encode()
        documents.append([IM_START, *question, IM_END, 10, IM_START, *answer, IM_END, 10])
    return documents


def write_tokenizer(out: Path) -> None:
    """Byte b is token b; no merges. In the ByteLevel alphabet, which is GPT-2's, every byte is a printable letter."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letter_of = {byte: chr(byte) for byte in printable}
    for offset, byte in enumerate(b for b in range(256) if b not in letter_of):
        letter_of[byte] = chr(256 + offset)
    assert set(letter_of.values()) == set(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter_of[byte]: byte for byte in range(256)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.save(str(out / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|bos|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|eos|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONFIG.max_position_embeddings,
        "chat_template": CHAT_TEMPLATE,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def batch_of(stream: torch.Tensor, progress: float, rng: random.Random) -> torch.Tensor:
    """Random windows of the stream, [windows, tokens + 1], of the size that the phase of training has."""
    _, length, size = next(phase for phase in PHASES if progress < phase[0])
    starts = [rng.randrange(len(stream) - length - 1) for _ in range(size)]
    return torch.stack([stream[start : start + length + 1] for start in starts])


@torch.no_grad()
def bits_per_byte(model: LlamaForCausalLM, held_out: torch.Tensor, length: int = 1024) -> float:
    """Mean negative log2-likelihood of the held-out tokens."""
    model.eval()
    windows = held_out[: len(held_out) // length * length].view(-1, length)[:32]
    loss = model(input_ids=windows, labels=windows).loss.item()
    model.train()
    return loss / math.log(2)


def save(model: LlamaForCausalLM, out: Path) -> None:
    """Write the weights in bfloat16 beside the old ones, then put them in their place."""
    partial = out / "partial"
    half = LlamaForCausalLM(model.config).to(torch.bfloat16)
    half.load_state_dict({name: weight.to(torch.bfloat16) for name, weight in model.state_dict().items()})
    half.save_pretrained(partial)
    for path in partial.iterdir():
        path.replace(out / path.name)
    shutil.rmtree(partial)


def main() -> None:
    """Train for the given time and leave the model in the output folder."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--minutes", type=float, default=30.0)
    arguments.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "datasets" / "tiny")
    options = arguments.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    rng = random.Random(0)
    documents = corpus()
    rng.shuffle(documents)
    cut = len(documents) // 50
    held_out = torch.tensor([token for document in documents[:cut] for token in document])
    stream = torch.tensor([token for document in documents[cut:] for token in document])
    model = LlamaForCausalLM(CONFIG)
    print(f"{model.num_parameters():,} weights, {len(stream):,} training bytes, {len(held_out):,} held out")
    write_tokenizer(options.out)

    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=0.05)
    begin, seconds, step, peak_rate = time.monotonic(), options.minutes * 60, 0, 4e-3
    # The schedule follows the clock: any machine ends in time.
    while (progress := (time.monotonic() - begin) / seconds) < 1:
        batch = batch_of(stream, progress, rng)
        rate = peak_rate * min(1.0, (step + 1) / 100, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=batch[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % 200 == 0:
            minutes = (time.monotonic() - begin) / 60
            print(f"{minutes:5.1f} min  step {step}  {loss.item() / math.log(2):.3f} bits/byte", flush=True)
        if step % 2000 == 0:
            save(model, options.out)
    print(f"held out: {bits_per_byte(model, held_out):.3f} bits per byte after {step} steps")
    save(model, options.out)


if __name__ == "__main__":
    sys.exit(main())
