"""The same random model twice: transformers' and ours, from one folder."""

from pathlib import Path
from typing import Any

import torch
import transformers

from infra_lab.compression.trainable import TrainableLM, load_trainable
from infra_lab.data import data_path
from tests.models.hf_models import random_model

TEXT = torch.tensor([list(b"The value of an object is "), list(b"returned. If it is not in ")])
ALL_BIASES = {"attention_bias": True, "mlp_bias": True}


def pair(folder: Path, architecture: str = "llama", **options: Any) -> tuple[Any, TrainableLM]:
    """In float64 both; transformers' norms and softmax stay in float32."""
    random_model(architecture, **options).save_pretrained(folder)
    return theirs(folder), load_trainable(folder, dtype=torch.float64)


def theirs(folder: Path, dtype: torch.dtype = torch.float64) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    return model.eval()


def tiny(dtype: torch.dtype = torch.float32) -> TrainableLM:
    return load_trainable(data_path("tiny"), dtype=dtype)
