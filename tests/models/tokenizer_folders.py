"""Small tokenizers of the two kinds, saved as Hugging Face folders, and texts that are hard on them."""

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "  leading, trailing  and   inner \t spaces \r\n\n\n and lines ",
    "def f(x):\n\treturn {'a': [1, 22, 333, 4444444]}  # naïve — “quoted” …\n",
    "你好，世界！人工智能推理系统。日本語のテキスト、한국어 텍스트",
    "👩‍🚀👨‍👩‍👧‍👦🏳️‍🌈 🙂🇫🇷 e\u0301 \u200b\u202e zalgo: h\u0335\u0322\u0321i",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|> <|im_start| >",
    "12345678901234567890 3.14159 1e-10 0x1F ½ ² ٣",
    "I'm you're we'll THEY'VE don't",
    "",
    "\x00\x01\x7f\ufeff\ufffd",
]


def write_folder(folder: Path, tokenizer: tokenizers.Tokenizer, **config: Any) -> Path:
    tokenizer.save(str(folder / "tokenizer.json"))
    content = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
    return folder


def byte_level_folder(folder: Path) -> Path:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"])
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return write_folder(folder, tokenizer, bos_token="<s>", eos_token="</s>")


def byte_fallback_folder(folder: Path) -> Path:
    """Like Llama 2's: spaces become ▁, what the vocabulary lacks becomes bytes such as <0xE4>, and a text begins with <s>."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz."]
    pieces += ["▁t", "he", "▁the", "in", "ing"]
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("i", "n"), ("in", "g")]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single=["<s>", "$A"], special_tokens=[("<s>", 1)])
    return write_folder(folder, tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
