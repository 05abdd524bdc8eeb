"""Write a trained model as a Hugging Face folder, for `LLM(folder)` and for everything else that reads one."""

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from infra_lab.compression.trainable import TrainableLM
from infra_lab.errors import ConfigError
from infra_lab.models.hf_write import config_to_hf, whole_folder, write_json, write_tokenizer
from infra_lab.models.weights import DTYPES


def save_trainable(model: TrainableLM, source: Path, folder: Path, *, dtype: str = "bfloat16") -> None:
    """Save a model to `folder`, its weights rounded to `dtype`, with the tokenizer of `source`, a folder or .gguf file.

    Raises ConfigError for an unknown dtype, for weights that are not finite in it, and if `folder` is there already and not
    empty; whatever fails, no half a folder stays behind.
    """
    rounded = {name: tensor.detach().to("cpu", dtype_of(dtype)) for name, tensor in model.state_dict().items()}
    for name, tensor in rounded.items():
        if not torch.isfinite(tensor).all():
            raise ConfigError(
                f"{name} is not finite in {dtype}; train with a smaller learning rate, or save in float32"
            )
    with whole_folder(Path(folder)) as partial:
        weights = partial / "model.safetensors"
        save_file({name: t.contiguous() for name, t in rounded.items()}, weights, metadata={"format": "pt"})
        weights.chmod(0o644)
        write_tokenizer(Path(source), partial)
        write_json(partial / "config.json", config_to_hf(replace(model.config, torch_dtype=dtype)))


def dtype_of(name: str) -> torch.dtype:
    """Return torch's dtype of a name; raises ConfigError for another than the three that are saved."""
    if name not in DTYPES:
        raise ConfigError(f"dtype is {name!r}; expected one of {', '.join(DTYPES)}")
    return DTYPES[name]
