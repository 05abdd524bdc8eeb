"""Proposals from a model: a smaller one with a KV cache of its own, or the first layers of the model itself.

The draft's cache has the same blocks as the model's, only smaller ones, and the same tables name them: what the scheduler
decides about a block (shared, copied, found again by its prefix, given away) is right for both. So the draft computes
whatever the model computes, and where the two part is told in one line:

    tokens     … t t t x        the model has computed up to x; so has the draft, but for the last proposal where all were
    draft      … t t ? ▌        kept, since nothing was proposed after it. It begins one token earlier, then runs alone:
               └──┴─┘ a b c     x ─▶ a ─▶ b ─▶ c ─▶ d, a token a pass

A block is found by its prefix as soon as the model has filled it. If it ends in that last proposal, and its request goes no
further, the draft's block lacks one token: whoever takes it over gets proposals that are a little worse, and no other token.

The first layers of the model need neither: what they compute is in the model's own cache, or will be, the same, when the
model computes it after them.
"""

import math

import torch

from infra_lab.engine.sampling.draw import distributions, draw_from
from infra_lab.engine.speculation.accept import DRAFT, stream
from infra_lab.engine.speculation.proposal import Proposal
from infra_lab.engine.step_input import prepare_step
from infra_lab.models.transformer import CausalLM
from infra_lab.paged_kv.kv_memory import KVMemory
from infra_lab.scheduler.plan import Chunk, StepPlan
from infra_lab.scheduler.request import Request


def first_layers(model: CausalLM, num_layers: int) -> CausalLM:
    """Return the model that leaves after some of its layers, with the same weights, shared."""
    return CausalLM(model.config, model.embedding, model.layers[:num_layers], model.norm, model.lm_head, model.rotary)


class DraftModelProposer:
    """Draws each proposal from the draft's distribution, as the request would have it drawn from the model's.

    shares_cache: the draft is the first layers of the model, and kv_memory the model's.
    """

    def __init__(
        self,
        draft: CausalLM,
        kv_memory: KVMemory,
        *,
        dtype: torch.dtype,
        device: torch.device,
        shares_cache: bool = False,
    ) -> None:
        self.draft = draft
        self.kv_memory = kv_memory
        self._dtype, self._device = dtype, device
        self._shares_cache = shares_cache

    def propose(self, plan: StepPlan) -> dict[int, Proposal]:
        """See `Proposer`."""
        if not self._shares_cache:
            self.kv_memory.apply(plan.copies)
        proposals = {position: Proposal([]) for position in plan.drafts}
        drawn_from: dict[int, list[torch.Tensor]] = {position: [] for position in plan.drafts}
        chunks = self._first_chunks(plan)
        while chunks:
            logits = self._compute(plan, chunks, proposals)
            chunks = {}
            for position, row in logits.items():
                if not math.isfinite(row.max().item()):
                    continue  # nothing can be drawn from it
                request, start, _ = plan.chunks[position]
                proposal = proposals[position]
                proposal.token_ids.append(self._draw(request, row, len(proposal.token_ids), drawn_from[position]))
                if len(proposal.token_ids) < plan.drafts[position]:
                    chunks[position] = Chunk(request, start + len(proposal.token_ids), 1)
        for position, rows in drawn_from.items():
            if rows:
                proposals[position].probs = torch.stack(rows)
        return {position: proposal for position, proposal in proposals.items() if proposal.token_ids}

    def _first_chunks(self, plan: StepPlan) -> dict[int, Chunk]:
        if self._shares_cache:
            return {position: plan.chunks[position] for position in plan.drafts}
        chunks = {}
        for position, (request, start, num_tokens) in enumerate(plan.chunks):
            is_decode = start + num_tokens == len(request.token_ids)
            missing = 1 if is_decode and start > 0 else 0  # at most: see above
            chunks[position] = Chunk(request, start - missing, num_tokens + missing)
        return chunks

    def _compute(
        self, plan: StepPlan, chunks: dict[int, Chunk], proposals: dict[int, Proposal]
    ) -> dict[int, torch.Tensor]:
        """Run the draft; return the logits [V] after each chunk that has room for a proposal, by position in the plan."""
        positions = list(chunks)
        proposed = {i: proposals[p].token_ids for i, p in enumerate(positions) if p in proposals}
        prepared = prepare_step(
            StepPlan(plan.step, list(chunks.values())),
            block_size=self.kv_memory.block_size,
            dtype=self._dtype,
            device=self._device,
            scratch=self.kv_memory.scratch,
            proposed=proposed,
        )
        logits = self.draft.forward(prepared.inputs, self.kv_memory.layers[: len(self.draft.layers)])  # [S, V]
        rows = zip(prepared.sampled_positions, logits, strict=True)
        return {positions[i]: row for i, row in rows if positions[i] in proposals}

    @staticmethod
    def _draw(request: Request, logits: torch.Tensor, place: int, drawn_from: list[torch.Tensor]) -> int:
        if request.params.is_greedy:
            return int(logits.argmax())
        (probs,) = distributions(logits.unsqueeze(0), request.params)
        drawn_from.append(probs)
        return draw_from(probs, stream(request, DRAFT)(place))

    def close(self) -> None:
        """Give back the draft and its memory."""
        self.draft.layers = []
        if not self._shares_cache:
            self.kv_memory.layers = []
