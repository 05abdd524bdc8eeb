"""Write what Hugging Face's loaders read beside the weights: config.json and the tokenizer's files."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infra_lab.errors import ConfigError
from infra_lab.models.config import ModelConfig
from infra_lab.models.gguf_file import GGUFFile
from infra_lab.models.gguf_tokenizer import gguf_tokenizer

_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)


def check_target(folder: Path) -> None:
    """Raise ConfigError if there is something at `folder` already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is not empty; choose another folder, or delete it first")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder to write to, which becomes `folder` at the end; whatever fails, no half a folder stays behind.

    Raises what `check_target` raises.
    """
    check_target(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
    try:
        yield partial
        partial.chmod(0o755)  # temporary folders are their owner's alone
        partial.replace(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """Return the config.json of a model; `config_from_folder` reads it back."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if (scaling := config.rope_scaling) is not None:
        fields = ("factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "truncate")
        optional = ("attention_factor", "mscale", "mscale_all_dim")
        rope |= {"rope_type": scaling.kind, "original_max_position_embeddings": scaling.original_max_position}
        rope |= {name: getattr(scaling, name) for name in fields}
        rope |= {name: value for name in optional if (value := getattr(scaling, name)) is not None}
    return {
        "architectures": [_CLASSES[config.architecture]],
        "model_type": config.architecture,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position,
        "rope_parameters": rope,
        "rms_norm_eps": config.rms_norm_eps,
        "hidden_act": "silu",
        "attention_bias": config.o_bias,
        "mlp_bias": config.mlp_bias,
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_ids),
        "dtype": config.torch_dtype,
    }


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write one JSON file as Hugging Face formats it."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_tokenizer(source: Path, folder: Path) -> None:
    """Give `folder` the tokenizer of `source`: copies of a folder's files, or the same written from a .gguf file."""
    if source.is_dir():
        for name in _TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
        return
    parts = gguf_tokenizer(GGUFFile(source).metadata, str(source))
    parts.backend.save(str(folder / "tokenizer.json"))
    templates = [{"name": name, "template": text} for name, text in parts.chat_templates.items()]
    write_json(folder / "tokenizer_config.json", {**parts.named_tokens, "chat_template": templates})
    write_json(folder / "generation_config.json", {"eos_token_id": list(parts.eos_token_ids)})
