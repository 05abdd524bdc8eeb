"""llama.cpp as a peer: the same GGUF file, its own kernels, on as many threads as torch takes."""

import importlib.util
import time
from pathlib import Path
from typing import Any

import torch

HINT = (
    "llama.cpp is not here to compare with: pip install llama-cpp-python (it is built from source; where that build crashes, "
    'CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX512=OFF -DGGML_AMX_TILE=OFF -DGGML_AMX_INT8=OFF" makes one that runs)'
)


def is_installed() -> bool:
    """Whether `llama_cpp` can be imported."""
    return importlib.util.find_spec("llama_cpp") is not None


class LlamaCppPeer:
    """One stream of greedy decoding, through llama-cpp-python's own loop."""

    def __init__(self, path: Path, *, max_model_len: int) -> None:
        import llama_cpp

        threads = torch.get_num_threads()
        self.version: str = llama_cpp.__version__
        self._llama: Any = llama_cpp.Llama(
            str(path), n_ctx=max_model_len, n_threads=threads, n_threads_batch=threads, verbose=False
        )

    def tokens_per_s(self, prompt: list[int], num_tokens: int) -> float:
        """Tokens a second of a prompt's greedy continuation, the prompt's own time included."""
        self._llama.reset()
        begin = time.perf_counter()
        tokens = self._llama.generate(prompt, temp=0.0, reset=True)
        for _ in range(num_tokens):
            next(tokens)
        return num_tokens / (time.perf_counter() - begin)
