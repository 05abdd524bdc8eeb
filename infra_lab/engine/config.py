"""What a user asks of the engine, and what becomes of it on this machine."""

from dataclasses import dataclass
from typing import Literal

import torch

import kernels
from infra_lab.engine.speculation import Speculation, speculation_of
from infra_lab.errors import ConfigError
from infra_lab.hardware.machine import available_memory_bytes
from infra_lab.models.config import ModelConfig
from infra_lab.models.weights import DTYPES
from infra_lab.paged_kv.block_manager import PrefixIndexName, check_prefix_index
from infra_lab.paged_kv.kv_memory import QUANTIZED_DTYPES, kv_block_bytes
from infra_lab.quantization import LinearScheme, parse_scheme
from infra_lab.scheduler.config import SchedulerConfig
from infra_lab.scheduler.policies import BatchingPolicy, policy_of

CPU_KV_BYTES = 1 << 30
"""Without a wish of the user, the KV cache of a CPU engine takes this much, if a quarter of the free memory allows."""

TOKEN_BUDGET = 512

SHARED_MATRIX_WEIGHTS = 1 << 18
"""Splitting a smaller matrix between threads costs more than it saves, and much more where another program wants the cores:
the threads then wait for each other at every layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Everything that can be set, each with a default that suits a laptop. `resolve_config` checks it."""

    model: str = "tiny"
    """"tiny", a name that `infra-lab fetch` knows, a Hugging Face folder, or a .gguf file."""
    load_format: Literal["auto", "dummy"] = "auto"
    """"dummy": random weights for the model's config.json, for speed runs."""
    device: str = "auto"
    dtype: str = "auto"
    """"float32", "bfloat16", "float16"; "auto": bfloat16 where the hardware multiplies it natively, else float32."""
    quantization: str | None = None
    kv_dtype: Literal["auto", "int8", "fp8"] = "auto"
    """What keys and values are stored in; "auto": `dtype`. The others round them to 8 bits (FP8 E4M3), with one float32 scale
    a token and head: twice the tokens of bfloat16 in the same memory, nearly."""
    max_model_len: int | None = None
    """Tokens of prompt and output together; None: the model's own context."""
    block_size: int = 16
    kv_cache_bytes: int | None = None
    """Size of the paged KV memory; None: see `resolve_config`."""
    num_kv_blocks: int | None = None
    """The same in blocks; overrides `kv_cache_bytes`."""
    gpu_memory_fraction: float = 0.9
    """Share of a GPU's memory that weights and KV cache may take together."""
    enable_prefix_cache: bool = True
    prefix_index: PrefixIndexName = "hash"
    """How cached prefixes are found: "hash", by whole blocks; "radix", in a tree, up to the first other token."""
    policy: str | BatchingPolicy = "chunked-prefill"
    """How requests are batched: a name in `scheduler.policies.POLICIES`, or such a policy with settings of its own."""
    kv_reservation: Literal["paged", "whole"] = "paged"
    """"whole": a request gets blocks for all it may come to when it comes in, as before PagedAttention."""
    speculation: str | Speculation | None = None
    """Propose tokens and check several in one step: "ngram", "early-exit", or a `Speculation` with settings of its own."""
    max_num_seqs: int = 64
    max_batched_tokens: int | None = None
    """The token budget of one step; None: 512, or max_model_len + max_num_seqs if that is more and the policy computes prompts
    whole."""
    max_prefill_chunk: int | None = None
    max_waiting: int | None = None
    num_threads: int | None = None
    """CPU threads that a step computes with; None: one for a model too small to be shared, else as many as torch uses."""
    overlap_scheduling: bool = False
    """Plan a step, and hand out the tokens of the one before, while the device computes; what it costs is in `engine.core`. Not
    with speculation: how many tokens a step brings is not known before it ends."""
    cuda_graphs: bool = True
    """On a GPU, capture decode steps at the start and replay them: what is changed in the model's code or layers later is not
    seen by them. Ignored where the kernels do not run."""


@dataclass(frozen=True, slots=True)
class ResolvedConfig:
    """The same with every "auto" and None replaced by what it means here."""

    device: torch.device
    dtype: torch.dtype
    kv_dtype: torch.dtype
    scheme: LinearScheme
    max_model_len: int
    num_kv_blocks: int | None
    """None on a GPU with no wish of the user: what the weights leave is known once they are loaded."""
    scheduler: SchedulerConfig
    speculation: Speculation | None
    num_threads: int
    cuda_graphs: bool


def resolve_config(config: EngineConfig, model: ModelConfig) -> ResolvedConfig:
    """Decide device, dtypes, context and KV size, in this order; each step may use the ones before.

    Raises ConfigError with the value, what was expected, and what to change.
    """
    # 1. Where to run.
    device = _device(config.device)
    # 2. In which precision, and with which weights.
    dtype = _dtype(config.dtype, device)
    scheme = parse_scheme(config.quantization)
    kv_dtype = _kv_dtype(config.kv_dtype, dtype, device)
    # 3. How long a sequence may get.
    max_model_len = model.max_position if config.max_model_len is None else config.max_model_len
    if not 1 <= max_model_len <= model.max_position:
        raise ConfigError(f"max_model_len is {max_model_len}; the model's context is 1 to {model.max_position} tokens")
    # 4. How much KV memory: at least room for one sequence of some length, at most what the machine has.
    if config.block_size < 1:
        raise ConfigError(f"block_size is {config.block_size}; it must be at least 1")
    check_prefix_index(config.prefix_index)
    num_kv_blocks = _num_kv_blocks(config, device, kv_block_bytes(model, kv_dtype, config.block_size))
    # 5. What a step may hold.
    policy = policy_of(config.policy)
    budget = config.max_batched_tokens
    if budget is None:
        # A prompt that is computed whole must fit beside a token for everybody who runs, or it waits until they have ended.
        budget = TOKEN_BUDGET if policy.chunks_prompts else max(TOKEN_BUDGET, max_model_len + config.max_num_seqs)
    speculation = speculation_of(config.speculation)
    if speculation is not None and config.overlap_scheduling:
        raise ConfigError(
            "overlap_scheduling plans a step before it is known how many tokens the one before brings, which speculation "
            "changes; leave one of the two off"
        )
    scheduler = SchedulerConfig(
        policy=policy,
        kv_reservation=config.kv_reservation,
        max_model_len=max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_batched_tokens=budget,
        max_prefill_chunk=config.max_prefill_chunk,
        num_speculative_tokens=0 if speculation is None else speculation.num_tokens,
        max_waiting=config.max_waiting,
    )
    # 6. With how many threads of the CPU.
    num_threads = _num_threads(config.num_threads, model)
    # 7. Whether decode steps are graphs: only kernels find each sequence's blocks by themselves.
    cuda_graphs = config.cuda_graphs and kernels.launches_on(device)
    return ResolvedConfig(
        device, dtype, kv_dtype, scheme, max_model_len, num_kv_blocks, scheduler, speculation, num_threads, cuda_graphs
    )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"unknown device {name!r}; use 'auto', 'cpu', 'cuda' or 'cuda:1'") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name!r} is not supported; use 'cpu' or 'cuda'")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device is {name!r}, but torch sees no CUDA GPU here; use device='cpu'")
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        is_native = (
            torch.cuda.is_bf16_supported(including_emulation=False)
            if device.type == "cuda"
            else torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        )
        return torch.bfloat16 if is_native else torch.float32
    if name not in DTYPES:
        raise ConfigError(f"unknown dtype {name!r}; known: auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def _kv_dtype(name: str, dtype: torch.dtype, device: torch.device) -> torch.dtype:
    if name == "auto":
        return dtype
    if name not in QUANTIZED_DTYPES:
        raise ConfigError(f"unknown kv_dtype {name!r}; known: auto, {', '.join(QUANTIZED_DTYPES)}")
    if name == "fp8" and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        raise ConfigError(
            f"kv_dtype is 'fp8', which needs a GPU of compute capability 8.9; {torch.cuda.get_device_name(device)} has "
            f"{'.'.join(map(str, torch.cuda.get_device_capability(device)))}: use 'int8'"
        )
    return QUANTIZED_DTYPES[name]


def _num_threads(wanted: int | None, model: ModelConfig) -> int:
    if wanted is None:
        is_small = model.hidden_size * model.intermediate_size < SHARED_MATRIX_WEIGHTS
        return 1 if is_small else torch.get_num_threads()
    if wanted < 1:
        raise ConfigError(f"num_threads is {wanted}; it must be at least 1, or None for the engine's choice")
    return wanted


def _num_kv_blocks(config: EngineConfig, device: torch.device, block_bytes: int) -> int | None:
    if config.num_kv_blocks is not None:
        if config.num_kv_blocks < 1:
            raise ConfigError(f"num_kv_blocks is {config.num_kv_blocks}; it must be at least 1")
        return config.num_kv_blocks
    wanted_bytes = config.kv_cache_bytes
    if wanted_bytes is None:
        if device.type == "cuda":
            return None
        wanted_bytes = min(CPU_KV_BYTES, available_memory_bytes() // 4)
    if wanted_bytes < block_bytes:
        raise ConfigError(
            f"the KV cache would get {wanted_bytes:,} bytes, less than one block of {block_bytes:,}; "
            "raise kv_cache_bytes, or lower block_size"
        )
    return wanted_bytes // block_bytes
