"""The executor that computes with torch in this process, on a CPU or one GPU."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from time import perf_counter

import torch

from infra_lab.engine.decode_graphs import DecodeGraphs
from infra_lab.engine.sampling import Sampler
from infra_lab.engine.speculation import Proposal, Proposer, check
from infra_lab.engine.step_input import prepare_step
from infra_lab.models.transformer import CausalLM
from infra_lab.paged_kv.kv_memory import KVMemory
from infra_lab.scheduler.plan import NO_TOKEN, StepPlan, StepResult


class TorchExecutor:
    """Runs a model over a paged KV memory (see `Executor` for the contract).

    graphs: computes the pure decode steps; without it they go the way of all others.
    proposer: proposes tokens where a plan has room for them.
    """

    def __init__(
        self,
        model: CausalLM,
        kv_memory: KVMemory,
        *,
        dtype: torch.dtype,
        device: torch.device,
        num_threads: int | None = None,
        graphs: DecodeGraphs | None = None,
        proposer: Proposer | None = None,
    ) -> None:
        self.model = model
        self.kv_memory = kv_memory
        self.graphs = graphs
        self.proposer = proposer
        self.sampler = Sampler()
        self._dtype, self._device = dtype, device
        self._num_threads = num_threads

    def execute(self, plan: StepPlan) -> StepResult:
        """Copy blocks, run the model over the plan's tokens, sample; all of it has happened on return."""
        others = torch.get_num_threads()
        if self._num_threads in (None, others):
            return self._execute(plan)
        torch.set_num_threads(self._num_threads)  # the process's setting, given back for whatever else it computes
        try:
            return self._execute(plan)
        finally:
            torch.set_num_threads(others)

    @torch.inference_mode()
    def _execute(self, plan: StepPlan) -> StepResult:
        self.kv_memory.apply(plan.copies)
        begin = perf_counter()
        proposals = self.proposer.propose(plan) if self.proposer else {}
        proposed_at = perf_counter()
        compute, positions = self._prepare(plan, proposals)
        prepared_at = perf_counter()
        logits = compute()  # [S, V]
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        computed_at = perf_counter()
        result = StepResult([NO_TOKEN] * len(plan.chunks))
        for i, proposal in proposals.items():
            row = positions.index(i)
            checked = check(logits[row : row + 1 + len(proposal.token_ids)], plan.chunks[i].request, proposal)
            if checked is None:
                result.errors[i] = "a logit is not finite: the model cannot say what follows"
            else:
                result.speculated[i], result.token_ids[i] = checked
        if proposals:
            plain = [row for row, position in enumerate(positions) if position not in proposals]
            logits, positions = logits[plain], [positions[row] for row in plain]
        if positions:
            sampled = self.sampler.sample(logits, [plan.chunks[i].request for i in positions])
            for row, i in enumerate(positions):
                result.token_ids[i] = sampled.token_ids[row]
            result.logprobs = {positions[row]: logprobs for row, logprobs in sampled.logprobs.items()}
            result.errors |= {positions[row]: message for row, message in sampled.errors.items()}
        result.timings_s = {
            "prepare": prepared_at - proposed_at,
            "forward": computed_at - prepared_at,
            "sample": perf_counter() - computed_at,
        }
        if self.proposer:
            result.timings_s["propose"] = proposed_at - begin
        return result

    def _prepare(self, plan: StepPlan, proposals: dict[int, Proposal]) -> tuple[Callable[[], torch.Tensor], list[int]]:
        """Bring the step's inputs to the device; return what computes its logits, and the chunk of each of their rows."""
        proposed = {i: proposal.token_ids for i, proposal in proposals.items()}
        if proposed:
            chunks = [
                chunk._replace(num_tokens=chunk.num_tokens + len(proposed.get(i, ())))
                for i, chunk in enumerate(plan.chunks)
            ]
            plan = replace(plan, chunks=chunks)
        if self.graphs is not None and self.graphs.can_run(plan.chunks):
            return self.graphs.prepare(plan.chunks)
        prepared = prepare_step(
            plan,
            block_size=self.kv_memory.block_size,
            dtype=self._dtype,
            device=self._device,
            scratch=self.kv_memory.scratch,
            proposed=proposed,
        )
        return partial(self.model.forward, prepared.inputs, self.kv_memory.layers), prepared.sampled_positions

    def close(self) -> None:
        """Give back the model and the KV memory; a second call does nothing."""
        self.graphs = None
        if self.proposer:
            self.proposer.close()
        self.kv_memory.layers = []
        self.model.layers = []
