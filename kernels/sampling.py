"""Drawing one token a row from logits: temperature, top-k, top-p and min-p in one launch, without a sort.

    ratio[v]  = exp((logits[v] - max) / temperature)             temperature 0: the most probable token, the lowest id of equals
    order     the row, largest logit first, equals by lowest id
    top-k     the first k of the order
    min-p     of these, those with ratio ≥ min_p                  (Nguyen et al. 2024)
    top-p     of these, token i where Σ ratio[before i] < top_p · Σ ratio       (nucleus; Holtzman et al. 2019)
    draw      in order of ids, the first whose running sum exceeds random · sum

The random number is Philox4x32-10's (Salmon et al. 2011) for the row's own seed and step: the same token whatever else is in
the batch, and whatever the launch's block size. A row whose largest logit is not finite, or that has a NaN, gives NO_TOKEN.

A program instance owns a row. One pass finds the largest logit and the largest of every BLOCK-th column; these bound what can
be among the first k, so that the second pass leaves some hundred candidates, and the search for the cutoff runs over
them, out of the cache (`sampling_search`). A sort moves every logit and its index several times.

It wins most with many rows and large vocabularies. It loses where rows are few, for a row is read by a single
multiprocessor, and where the distribution is so flat that the nucleus has more than BLOCK tokens, or top-k is above BLOCK / 2:
then every step of the bisection, up to 32, reads the whole row again. Greedy rows alone are better served by `argmax`.
"""

import torch

from kernels.cost import Cost
from kernels.dispatch import use_triton
from kernels.library import operator
from kernels.philox import philox, random_64
from kernels.sampling_search import (
    LOWEST,
    STAGES,
    UNITS,
    find_cutoff,
    key_of,
    load_logits,
    locate,
    measure,
    ratio_of,
    select_candidates,
    value_of,
    weight_of,
)
from kernels.spec import KernelConfig, KernelSpec
from kernels.triton_api import jit, tl
from kernels.tuned import Tunable, bucket
from kernels.work import chunks_work

NO_TOKEN = -1
MIN_TEMPERATURE = 1e-6
"""As in the engine: below it there is nothing but the most probable token."""
LEAST = tl.constexpr(MIN_TEMPERATURE)
CONFIGS = tuple(
    KernelConfig({"BLOCK": block}, num_warps, num_stages=1)
    for block, num_warps in ((2048, 16), (4096, 16), (2048, 8), (4096, 32), (1024, 8))
)


def filter_logits_reference(
    logits: torch.Tensor, temperature: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor
) -> torch.Tensor:
    """Do what `filter_logits` does, by a sort."""
    ordered, order = logits.double().sort(dim=1, descending=True, stable=True)  # [S, V]
    ratios = ((ordered - ordered[:, :1]) / temperature.double().clamp(min=MIN_TEMPERATURE).unsqueeze(1)).exp()
    rank = torch.arange(logits.shape[1], device=logits.device)
    last = torch.where(temperature <= 0, 1, torch.where(top_k > 0, top_k, logits.shape[1]))
    keeps = (rank < last.unsqueeze(1)) & (ratios >= min_p.unsqueeze(1))
    ratios = ratios.where(keeps, 0.0)
    before = ratios.cumsum(dim=1) - ratios
    keeps &= (before < top_p.double().unsqueeze(1) * ratios.sum(dim=1, keepdim=True)) | (top_p >= 1.0).unsqueeze(1)
    return logits.masked_fill(~torch.zeros_like(keeps).scatter(1, order, keeps), float("-inf"))


def sample_reference(
    logits: torch.Tensor, temperature: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor,
    seeds: torch.Tensor, steps: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """Do what `sample` does, by a sort."""
    kept = filter_logits_reference(logits, temperature, top_k, top_p, min_p).double()
    largest = kept.amax(dim=1, keepdim=True)
    ratios = ((kept - largest) / temperature.double().clamp(min=MIN_TEMPERATURE).unsqueeze(1)).exp()
    sums = (ratios.nan_to_num() * UNITS).long().cumsum(dim=1)  # [S, V], in whole units
    totals, counters = sums[:, -1].tolist(), zip(seeds.tolist(), steps.tolist(), strict=True)
    targets = [philox(seed, step) * total >> 64 for (seed, step), total in zip(counters, totals, strict=True)]
    drawn = torch.searchsorted(sums, torch.tensor(targets, device=sums.device).view(-1, 1), right=True).squeeze(1)
    return drawn.where(largest.squeeze(1).isfinite(), NO_TOKEN)


@jit
def _largest(row_ptr, num_columns, BLOCK: tl.constexpr):
    """Return the largest logit, its lowest index, whether it is one to go by, and the key of the largest in each lane."""
    lanes = tl.arange(0, BLOCK)
    best, first, nans = tl.full((BLOCK,), float("-inf"), tl.float32), lanes, tl.zeros((BLOCK,), tl.int32)
    for start in tl.range(0, num_columns, BLOCK, num_stages=STAGES):
        value = load_logits(row_ptr, start + lanes, num_columns)
        nans |= (value != value).to(tl.int32)
        first = tl.where(value > best, start + lanes, first)
        best = tl.where(value > best, value, best)
    largest = tl.max(best, 0)
    is_valid = (tl.max(nans, 0) == 0) & (tl.abs(largest) < float("inf"))
    return largest, tl.min(tl.where(best == largest, first, num_columns), 0), is_valid, key_of(best)


@jit
def _cut(
    values_ptr, num_values, smallest, largest, count, weight, temperature, top_k, top_p, min_p, BLOCK: tl.constexpr
):  # fmt: skip
    """Return the cutoff, the index of the last equal that is kept (num_values: all are), and the weight of what is kept.

    count, weight, smallest: of all logits that min-p leaves, in the whole row.
    """
    cutoff, high, last_equal = smallest, key_of(largest), num_values
    limits_rank = (top_k > 0) & (top_k < count)
    each, limit, beyond = weight * 0 + 1, weight * 0, weight * 0  # of the equals, `limit` and one more are kept
    if limits_rank:
        cutoff, above = find_cutoff(
            values_ptr, num_values, cutoff, high, top_k.to(tl.int64), largest, temperature, min_p, False, BLOCK
        )
        limit = top_k - above - 1
        _, weight, _, _ = measure(values_ptr, num_values, cutoff + 1, largest, temperature, min_p, BLOCK)
        weight += (limit + 1) * weight_of(ratio_of(value_of(cutoff), largest, temperature))
    if top_p < 1.0:
        wanted = _share(top_p, weight)
        cutoff, beyond = find_cutoff(
            values_ptr, num_values, cutoff, high, wanted, largest, temperature, min_p, True, BLOCK
        )
        each = weight_of(ratio_of(value_of(cutoff), largest, temperature))
        limit = wanted - beyond - 1  # in weight, which spares dividing it by that of each
    if limits_rank | (top_p < 1.0):
        last_equal, reached = locate(
            values_ptr, num_values, cutoff, num_values, each, limit, largest, temperature, True, BLOCK
        )
        if top_p < 1.0:
            weight = beyond + reached
    return cutoff, last_equal, weight


@jit
def _share(top_p, weight):
    """Return the weight that what is kept must reach: top_p of it, rounded up, in units."""
    return tl.maximum(tl.ceil(top_p.to(tl.float64) * weight.to(tl.float64)).to(tl.int64), 1)


@jit(varies=("temperature_ptr", "top_k_ptr", "top_p_ptr", "min_p_ptr", "seed_ptr", "step_ptr"))
def _sample(
    logits_ptr, out_ptr, values_ptr, indices_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, seed_ptr, step_ptr,
    num_columns, row_stride, DRAWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    num_columns = tl.to_tensor(num_columns)
    row_ptr = logits_ptr + row * row_stride
    temperature = tl.load(temperature_ptr + row)
    largest, token, is_valid, lane_keys = _largest(row_ptr, num_columns, BLOCK)
    cutoff, last_equal = key_of(largest), token
    if is_valid & (temperature > 0.0):
        temperature = tl.maximum(temperature, LEAST)
        top_k, top_p, min_p = tl.load(top_k_ptr + row), tl.load(top_p_ptr + row), tl.load(min_p_ptr + row)
        limits_rank = (top_k > 0) & (top_k < num_columns)
        source_ptr, source_indices_ptr, num_values = row_ptr, indices_ptr + row * BLOCK, num_columns
        is_selection = num_columns < 0
        if limits_rank | (top_p < 1.0):
            wanted = tl.where(limits_rank, tl.minimum(top_k, BLOCK), BLOCK // 4)
            selection_ptr = values_ptr + row * BLOCK
            selected, count, weight, smallest = select_candidates(
                row_ptr, selection_ptr, source_indices_ptr, num_columns, lane_keys, wanted, largest, temperature, min_p,
                BLOCK,
            )  # fmt: skip
            if selected <= BLOCK:
                is_selection = limits_rank & (selected >= top_k)
                if not limits_rank:
                    _, reached, _, _ = measure(selection_ptr, selected, LOWEST, largest, temperature, min_p, BLOCK)
                    is_selection = reached >= _share(top_p, weight)
            if is_selection:
                source_ptr, num_values = selection_ptr, selected
        else:
            count, weight, smallest, _ = measure(row_ptr, num_columns, LOWEST, largest, temperature, min_p, BLOCK)
        cutoff, last_equal, weight = _cut(
            source_ptr, num_values, smallest, largest, count, weight, temperature, top_k, top_p, min_p, BLOCK
        )
        if DRAWS:
            random = random_64(tl.load(seed_ptr + row), tl.load(step_ptr + row))
            target = tl.umulhi(random, weight.to(tl.uint64)).to(tl.int64)  # random / 2^64 of the weight, rounded down
            place, _ = locate(
                source_ptr, num_values, cutoff, last_equal, target, target, largest, temperature, False, BLOCK
            )
            if place < num_values:
                token = place
                if is_selection:
                    token = tl.load(source_indices_ptr + place)
        elif is_selection:
            is_one = last_equal < num_values
            last_equal = tl.load(source_indices_ptr + last_equal, mask=is_one, other=0) + tl.where(
                is_one, 0, num_columns
            )
    if DRAWS:
        tl.store(out_ptr + row, tl.where(is_valid, token, -1).to(tl.int64))
    else:
        cutoff = tl.where(is_valid, cutoff, LOWEST)
        for start in range(0, num_columns, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            value = load_logits(row_ptr, columns, num_columns)
            key = key_of(value)
            keeps = (key > cutoff) | ((key == cutoff) & (columns <= last_equal))
            value = tl.where(keeps, value, float("-inf")).to(out_ptr.dtype.element_ty)
            tl.store(out_ptr + row * num_columns + columns, value, mask=columns < num_columns)


@operator(lambda logits, temperature, top_k, top_p, min_p, seeds, steps: torch.empty_like(seeds))
def sample(
    logits: torch.Tensor, temperature: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor,
    seeds: torch.Tensor, steps: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """Draw one token id a row, [S] int64, from logits [S, V] of any floating dtype, -inf where a token is ruled out.

    By row, all [S]: temperature float32 (0: greedy), top_k int32 (0: all), top_p and min_p float32 (1 and 0: all), seeds and
    steps int64. Gives NO_TOKEN for a row with a NaN, or whose largest logit is not finite. Raises ValueError for other shapes
    or dtypes; values outside their range are for the caller to refuse, since to look at them would wait for the GPU.
    """
    parameters = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    if not use_triton(logits, *parameters.values(), seeds, steps):
        return sample_reference(logits, **parameters, seeds=seeds, steps=steps)
    _check(logits, {**parameters, "seeds": seeds, "steps": steps})
    drawn = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    launch(logits, drawn, *parameters.values(), seeds, steps, draws=True)
    return drawn


@operator(
    lambda logits, temperature, top_k, top_p, min_p: torch.empty_like(logits, memory_format=torch.contiguous_format)
)
def filter_logits(
    logits: torch.Tensor, temperature: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor
) -> torch.Tensor:
    """Return logits [S, V] with -inf for all tokens that `sample` would never draw, temperature not applied."""
    parameters = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    if not use_triton(logits, *parameters.values()):
        return filter_logits_reference(logits, **parameters)
    _check(logits, parameters)
    kept = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    launch(logits, kept, *parameters.values(), top_k, top_k, draws=False)
    return kept


_TUNED = Tunable("sample", (_sample,), CONFIGS)
_DTYPES = {"top_k": torch.int32, "seeds": torch.int64, "steps": torch.int64}


def _check(logits: torch.Tensor, parameters: dict[str, torch.Tensor]) -> None:
    if logits.dim() != 2 or not logits.is_floating_point() or (logits.shape[0] and not 0 < logits.shape[1] < 1 << 18):
        raise ValueError(
            f"logits are {list(logits.shape)} {logits.dtype}; they must be [S, V] of a floating dtype, V from 1 to 2^18 - 1"
        )
    for name, values in parameters.items():
        dtype = _DTYPES.get(name, torch.float32)
        if values.shape != logits.shape[:1] or values.dtype is not dtype:
            raise ValueError(
                f"{name} is {list(values.shape)} {values.dtype}; it must be [{len(logits)}] {dtype}, a value for each row"
            )


def launch(
    logits: torch.Tensor, out: torch.Tensor, *parameters: torch.Tensor, draws: bool, config: KernelConfig | None = None
) -> None:  # fmt: skip
    """Launch with a config of one's own: the result is the same. parameters: from temperature to steps, as in `sample`."""
    num_rows, num_columns = logits.shape
    if not num_rows:
        return
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    shape = {"rows": bucket(num_rows), "columns": num_columns, "dtype": logits.dtype, "draws": draws}
    config = config or _TUNED.config(logits.device, shape, lambda: CONFIGS[0])
    room = (num_rows, config.blocks["BLOCK"])
    values = torch.empty(room, dtype=logits.dtype, device=logits.device)
    indices = torch.empty(room, dtype=torch.int32, device=logits.device)
    by_row = [column.contiguous() for column in parameters]
    _sample[(num_rows,)](
        logits, out, values, indices, *by_row, num_columns, logits.stride(0),
        DRAWS=draws, **config.blocks, num_warps=config.num_warps,
    )  # fmt: skip


def sample_cost(num_rows: int, vocab_size: int, dtype_bytes: int) -> Cost:
    """Read the logits once. The kernel reads them twice at the least: some 12 operations a logit, the exponential as one."""
    elements = num_rows * vocab_size
    return Cost(flops=12 * elements, num_bytes=elements * dtype_bytes + num_rows * (4 * 4 + 3 * 8))


def _specs() -> tuple[KernelSpec, ...]:
    pointers = {"logits_ptr": "*bf16", "out_ptr": "*i64", "values_ptr": "*bf16", "indices_ptr": "*i32"}
    by_row = {"temperature_ptr": "*fp32", "top_k_ptr": "*i32", "top_p_ptr": "*fp32", "min_p_ptr": "*fp32"}
    counters = {"seed_ptr": "*i64", "step_ptr": "*i64"}
    signature = {**pointers, **by_row, **counters, "num_columns": "i32", "row_stride": "i32"}
    aligned = tuple(signature)
    filtering = {**signature, "out_ptr": "*bf16", "seed_ptr": "*i32", "step_ptr": "*i32"}
    rows, vocabulary = 256, 151_936
    shape, drawn = f"{rows} × {vocabulary:,}, bf16", sample_cost(rows, vocabulary, 2)
    kept = Cost(drawn.flops, 2 * drawn.num_bytes)
    draws, filters = (chunks_work(shape, cost, rows, vocabulary, 2 * vocabulary, passes=2) for cost in (drawn, kept))
    return (
        KernelSpec("sample", _sample, signature, {"DRAWS": True}, CONFIGS, aligned, work=draws),
        KernelSpec("filter_logits", _sample, filtering, {"DRAWS": False}, CONFIGS, aligned, work=filters),
    )


SPECS = _specs()
