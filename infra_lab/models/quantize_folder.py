"""From a model's name to a folder of it in fewer bits: what `infra-lab quantize` does."""

from collections.abc import Callable
from pathlib import Path

import torch

from infra_lab.errors import ConfigError
from infra_lab.models.calibrate import calibrate
from infra_lab.models.fetch import resolve_model
from infra_lab.models.hf_write import check_target
from infra_lab.models.loading import load_model
from infra_lab.models.quantized_folder import QuantizedFolder, save_quantized
from infra_lab.models.tokenizer import load_tokenizer
from infra_lab.models.transformer import CausalLM
from infra_lab.models.weights import open_checkpoint
from infra_lab.quantization import parse_scheme
from infra_lab.quantization.calibration import SLICE_TOKENS

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, done, total)."""


def quantize_to_folder(model: str, method: str, folder: Path, *, progress: Progress | None = None) -> CausalLM:
    """Quantize a model (its name, folder or .gguf file) and save it to `folder`, for `LLM(folder)`; return it.

    It is done on the CPU in float32, so that nothing is rounded twice. Raises ConfigError for an unknown method, a model that
    is quantized already and a folder that is not empty, before any work; and what loading the model raises.
    """
    report = progress or (lambda what, done, total: None)
    cpu, dtype = torch.device("cpu"), torch.float32
    scheme = parse_scheme(method)
    check_target(folder)
    path = resolve_model(model)
    checkpoint = open_checkpoint(path)
    if isinstance(checkpoint, QuantizedFolder):
        raise ConfigError(f"{path} is quantized already ({checkpoint.scheme}); give the unquantized model")
    loaded = load_model(
        checkpoint,
        dtype=dtype,
        device=cpu,
        scheme=scheme,
        max_model_len=min(SLICE_TOKENS, checkpoint.config.max_position),
        progress=lambda done, total: report("quantizing", done, total),
    )
    if scheme.recipe.needs_calibration:
        calibrate(
            loaded,
            load_tokenizer(path).encode,
            scheme.recipe,
            progress=lambda done, total: report("calibrating", done, total),
        )
    save_quantized(loaded, path, folder, scheme=method, progress=lambda done, total: report("writing", done, total))
    return loaded
