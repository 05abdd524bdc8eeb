"""Decode steps in a few padded sizes, each captured once as a CUDA graph and replayed (as vLLM and SGLang do).

    13 decodes ─▶ padded to 16 ─▶ copied into the buffers ─▶ replay the graph of 16 ─▶ the first 13 rows of the logits

All sizes are captured when the engine starts, the largest first, whose memory then serves the others too. Without a GPU
(Triton's interpreter) a step goes the same way, but is computed instead of replayed.

It wins where launching takes longer than computing: small models, few rows, short contexts. It loses up to half of a step's
rows to padding, which decode hardly feels, for reading the weights is what takes the time; and a start takes longer.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import torch

import kernels
from infra_lab.engine.cuda_graph import GraphCapture
from infra_lab.engine.decode_buffers import DecodeBuffers
from infra_lab.errors import ConfigError
from infra_lab.models.transformer import CausalLM
from infra_lab.paged_kv.kv_memory import KVMemory
from infra_lab.scheduler.plan import Chunk


def padded_sizes(max_num_seqs: int) -> list[int]:
    """Return the batch sizes that there are graphs of, ascending: 1, 2, 4, 8, then in steps of 8 to 32, of 16 to 128, of 32
    to 512, twice the step for four times the size and so on, and max_num_seqs itself at the end."""
    sizes, size = [], 1
    while size < max_num_seqs:
        sizes.append(size)
        step, limit = 8, 32
        while size >= limit:
            step, limit = 2 * step, 4 * limit
        size += min(step, size)
    return [*sizes, max_num_seqs]


class DecodeGraphs:
    """Computes the logits of steps in which every request has one token.

    Construction captures, with all rows padding: it writes nothing to the KV memory. The layers of the model and the tensors
    of the KV memory must stay what they are from then on.

    Raises ConfigError if a step of this model cannot be captured.
    """

    def __init__(
        self, model: CausalLM, kv_memory: KVMemory, *, max_num_seqs: int, max_model_len: int, device: torch.device
    ) -> None:
        self._model, self._kv_memory, self._device = model, kv_memory, device
        self.sizes = padded_sizes(max_num_seqs)
        self.num_runs: Counter[int] = Counter()
        """By padded size: how often it was launched."""
        self._buffers = DecodeBuffers(
            max_num_seqs=max_num_seqs, max_model_len=max_model_len, block_size=kv_memory.block_size, device=device
        )
        dtype, vocab_size = model.norm.dtype, model.config.vocab_size
        self._logits = torch.empty(max_num_seqs, vocab_size, dtype=dtype, device=device)
        self._graphs = self._capture_all() if device.type == "cuda" else {}

    @property
    def num_replays(self) -> int:
        """How many steps were replays of a captured graph."""
        return sum(count for size, count in self.num_runs.items() if size in self._graphs)

    def can_run(self, chunks: Sequence[Chunk]) -> bool:
        """Whether these are a pure decode step of a size that there is, and kernels are what runs."""
        is_decode = all(chunk.num_tokens == 1 for chunk in chunks)
        return is_decode and 0 < len(chunks) <= self.sizes[-1] and kernels.launches_on(self._device)

    def prepare(self, chunks: Sequence[Chunk]) -> tuple[Callable[[], torch.Tensor], list[int]]:
        """Copy the step's inputs; return what computes its logits [S, V], and the chunk that each row belongs to.

        The logits hold until the next step. S is less than the number of chunks where a prompt goes on after its chunk.
        """
        self._buffers.fill(chunks)
        sampled = [i for i, chunk in enumerate(chunks) if chunk.start + 1 == len(chunk.request.token_ids)]
        return partial(self._run, len(chunks), sampled), sampled

    def _run(self, num_rows: int, sampled: list[int]) -> torch.Tensor:
        size = next(size for size in self.sizes if size >= num_rows)
        self.num_runs[size] += 1
        if size in self._graphs:
            self._graphs[size]()
        else:
            self._compute(size)
        if len(sampled) == num_rows:
            return self._logits[:num_rows]
        return self._logits[torch.tensor(sampled, dtype=torch.int64, device=self._device)]

    def _compute(self, size: int) -> None:
        logits = self._model.forward(self._buffers.inputs(size), self._kv_memory.layers)
        self._logits[:size].copy_(logits)  # one place for all sizes, instead of as much memory as all of them together

    @torch.inference_mode()
    def _capture_all(self) -> dict[int, Callable[[], None]]:
        capture = GraphCapture(self._device)
        try:
            return {size: capture(partial(self._compute, size)) for size in reversed(self.sizes)}
        except RuntimeError as error:
            raise ConfigError(
                f"a decode step of this model could not be captured as a CUDA graph ({error}); start again with "
                "cuda_graphs=False, or, if memory was short, with a lower gpu_memory_fraction"
            ) from error
