"""A simulated KV memory, and the operations that a scheduler and an executor make on it.

Every slot of the memory holds what a real one depends on: the version of the weights, the salt, and the *whole* prefix
of tokens up to its own. A sequence that finds anything but its own prefix through its block table was given somebody
else's context, or memory that nobody has computed.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

from infra_lab.paged_kv.block_manager import BlockCopy, BlockManager, PrefixIndexName
from infra_lab.paged_kv.sequence import KVSequence
from tests.paged_kv.cache_model import CacheModel
from tests.paged_kv.radix_model import RadixModel

CHECKS = ("memory", "integrity", "model")


class Slot(NamedTuple):
    weights_version: int
    salt: str
    prefix: tuple[int, ...]


@dataclass(slots=True, eq=False, kw_only=True)
class LiveSequence(KVSequence):
    num_computed: int = 0
    contents: list[Slot] = field(default_factory=list)  # what the slot of each computed token must hold


class Write(NamedTuple):
    seq: LiveSequence
    start: int
    stop: int


class KVWorld:
    """One manager, its memory, its sequences; what `checks` names is compared after every operation."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        manager_class: type[BlockManager] = BlockManager,
        checks: Collection[str] = CHECKS,
        prefix_index: PrefixIndexName = "hash",
    ) -> None:
        self.manager = manager_class(num_blocks, block_size, prefix_index=prefix_index)
        self.block_size = block_size
        self.max_tokens = num_blocks * block_size  # a longer sequence would be refused
        self.checks = checks
        model_class = RadixModel if prefix_index == "radix" else CacheModel
        self.model = model_class(num_blocks, block_size) if "model" in checks else None
        self.memory: list[list[Slot | None]] = [[None] * block_size for _ in range(num_blocks)]
        self.weights_version = 0
        self.live: list[LiveSequence] = []
        self.planned_copies: list[BlockCopy] = []
        self.planned_writes: list[Write] = []

    # ---- a sequence comes, runs and goes ----

    def add(self, tokens: list[int], salt: str) -> None:
        seq = LiveSequence(token_ids=tokens[: self.max_tokens], cache_salt=salt)
        self._open(seq)
        self.live.append(seq)

    def plan(self, seq: LiveSequence, num_tokens: int) -> bool:
        """Plan to compute the next `num_tokens` tokens, if there are any; False if there was no room for them."""
        start = seq.num_computed
        stop = min(len(seq.token_ids), start + num_tokens)
        if start == stop or self._is_planned(seq):
            return True
        if stop > seq.capacity and not self._grow(seq, start, stop):
            return False
        if self.model:
            owners = self._count_owners()
            for index in range(start // self.block_size, -(-stop // self.block_size)):
                block, offset = seq.block_table[index], max(start - index * self.block_size, 0)
                num_owners = owners[block] - self.model.num_waiting_for_a_copy(block)
                assert num_owners == 1, f"block {block} is about to be written, with {num_owners} owners"
                assert self.model.held(block) <= offset, f"block {block} is to be written, and can be found"
        self.planned_writes.append(Write(seq, start, stop))
        return True

    def plan_all_and_step(self, num_tokens: int) -> None:
        """Do what a scheduler does: claim, plan, and where there is no room preempt from the end of the list."""
        for seq in self.live:
            self.resume(seq)
            while not self.plan(seq, num_tokens):
                victim = next(live for live in reversed(self.live) if live.block_table or live is seq)
                self.preempt(victim)
                if victim is seq:
                    break
        self.step()

    def step(self) -> None:
        """Execute what was planned: all copies, every source read before the first write; then all writes; then commit."""
        copied = [list(self.memory[source]) for source, _ in self.planned_copies]
        for (_, destination), contents in zip(self.planned_copies, copied, strict=True):
            self.memory[destination] = contents
        for seq, start, stop in self.planned_writes:
            for position in range(start, stop):
                slot = self._slot(seq, position)
                seq.contents.append(slot)
                self.memory[seq.block_table[position // self.block_size]][position % self.block_size] = slot
            seq.num_computed = stop
        executed, self.planned_copies, self.planned_writes = self.planned_writes, [], []
        for seq, _, stop in executed:
            before = list(seq.block_table)
            self.manager.commit(seq, stop)
            if self.model:
                assert seq.block_table == self.model.committed(seq, before, stop)

    def fail(self) -> None:
        """Execute nothing of what was planned: who was to be computed starts anew, and leaves no tail."""
        for seq in [seq for seq, _, _ in self.planned_writes]:
            self._free(seq)
        self.planned_copies.clear()

    def sample(self, seq: LiveSequence, token: int) -> None:
        if seq.num_computed == len(seq.token_ids) < self.max_tokens:
            seq.token_ids.append(token)

    def fork(self, parent: LiveSequence, num_back: int, more_tokens: list[int]) -> None:
        """Fork `num_back` tokens before the end of what is computed: by 1 where each sample needs its own logits."""
        if self._is_planned(parent) or not parent.num_computed:
            return
        num_tokens = max(parent.num_computed - num_back, 0)
        child = LiveSequence(
            token_ids=(parent.token_ids[:num_tokens] + more_tokens)[: self.max_tokens],
            cache_salt=parent.cache_salt,
            num_computed=num_tokens,
            contents=parent.contents[:num_tokens],
        )
        self.manager.fork(parent, child, num_tokens)
        self.live.append(child)
        if self.model:
            assert child.block_table == parent.block_table[: -(-num_tokens // self.block_size)]
            self.model.forked(parent, child, num_tokens)

    def preempt(self, seq: LiveSequence) -> None:
        self.manager.commit_tail(seq, seq.num_computed)
        if self.model:
            self.model.tail_committed(seq, seq.num_computed)
        self._free(seq)

    def _free(self, seq: LiveSequence) -> None:
        self.planned_writes = [write for write in self.planned_writes if write.seq is not seq]
        if self.model:
            self.model.freed(seq.block_table, self._count_owners())
        self.manager.free(seq)
        assert (seq.block_table, seq.capacity) == ([], 0)
        seq.num_computed = 0
        seq.contents = []

    def resume(self, seq: LiveSequence) -> None:
        if not seq.block_table:
            self._open(seq)

    def finish(self, seq: LiveSequence) -> None:
        self.preempt(seq)
        self.manager.free(seq)  # idempotent
        self.live.remove(seq)

    def reset(self) -> None:
        """Forget the cache and load other weights: nobody may find again what was computed with the old ones."""
        num_forgotten = self.manager.reset_prefix_cache()
        self.weights_version += 1
        if self.model:
            assert num_forgotten == len(self.model.registered)
            self.model.reset([seq for seq in self.live if seq.block_table])

    def drain(self) -> None:
        """Free everything: no block may be missing."""
        for seq in list(self.live):
            self.finish(seq)
        self.check()
        if "integrity" in self.checks:
            assert self.manager.num_free_blocks == self.manager.num_blocks

    # ---- what must hold after every operation ----

    def check(self) -> None:
        if "memory" in self.checks:
            self._check_memory()
        if "integrity" in self.checks:
            self.manager.check_integrity(self.live)
            assert self.manager.num_free_blocks == self.manager.num_blocks - len(self._count_owners())
        if self.model:
            snapshot = self.manager.snapshot()
            registered = {info.block for info in snapshot.blocks if info.is_matchable}
            assert registered == self.model.registered
            self.model.check_contents(snapshot.blocks)
            unreferenced = registered - self._count_owners().keys()
            assert list(snapshot.eviction_order) == self.model.eviction_order(unreferenced)

    def _check_memory(self) -> None:
        awaiting_copy = {copy.destination for copy in self.planned_copies}
        for seq in self.live:
            for position in range(seq.num_computed):
                block = seq.block_table[position // self.block_size]
                found = self.memory[block][position % self.block_size]
                assert block in awaiting_copy or found == seq.contents[position], (
                    f"token {position} of {seq.token_ids} finds in block {block} {found}, not {seq.contents[position]}"
                )

    # ---- the two calls that hand out blocks ----

    def _open(self, seq: LiveSequence) -> None:
        num_matched = self.manager.match(seq)
        num_cached = self.manager.open(seq)
        assert num_cached == num_matched
        assert num_cached < len(seq.token_ids), "no token is left to compute"
        if self.model:
            self.model.check_opened(seq, num_cached)
            assert seq.capacity == num_cached // self.block_size * self.block_size
            self.model.opened(seq, num_cached)
        seq.num_computed = num_cached
        seq.contents = [self._slot(seq, position) for position in range(num_cached)]

    def _grow(self, seq: LiveSequence, start: int, stop: int) -> bool:
        manager, before, owners = self.manager, list(seq.block_table), self._count_owners()
        num_free, num_needed = manager.num_free_blocks, manager.blocks_to_grow(seq, stop, start)
        copies = manager.grow(seq, stop, start)
        if self.model:
            if copies is None:
                assert num_needed > num_free
                assert (seq.block_table, manager.num_free_blocks) == (before, num_free)
                self.model.seen["no room"] += 1
            else:
                num_released = sum(owners[copy.source] == 1 for copy in copies)
                assert num_free - manager.num_free_blocks == num_needed - num_released
                assert seq.capacity == len(seq.block_table) * self.block_size >= stop
                self._check_grown(seq, before, owners, start, copies)
        self.planned_copies.extend(copies or ())
        return copies is not None

    def _check_grown(
        self, seq: LiveSequence, before: list[int], owners: Counter[int], start: int, copies: tuple[BlockCopy, ...]
    ) -> None:
        assert self.model
        if not before:
            self.model.num_offered[seq] = 0
        self.model.grown(seq)
        taken = seq.block_table[len(before) :]
        index, offset = divmod(start, self.block_size)
        expected_copies: tuple[BlockCopy, ...] = ()
        source = before[index] if index < len(before) else None
        is_kept = source is not None and self.model.is_kept(source, offset, len(taken), owners)
        if source is not None and (owners[source] > 1 or is_kept):
            expected_copies = (BlockCopy(source, seq.block_table[index]),)
            before[index] = seq.block_table[index]
            taken.insert(0, seq.block_table[index])
            self.model.copied(seq, start)
            self.model.seen["copy-on-write" if owners[source] > 1 else "copy of a cached block"] += 1
        elif source is not None:
            self.model.reopened(source, offset)
        assert seq.block_table[: len(before)] == before
        assert copies == expected_copies
        self.model.taken(taken, owners)
        if source is not None and expected_copies and owners[source] == 1:
            self.model.freed([source], owners)

    def _is_planned(self, seq: LiveSequence) -> bool:
        return any(write.seq is seq for write in self.planned_writes)

    def _count_owners(self) -> Counter[int]:
        return Counter(block for seq in self.live for block in seq.block_table)

    def _slot(self, seq: LiveSequence, position: int) -> Slot:
        return Slot(self.weights_version, seq.cache_salt, tuple(seq.token_ids[: position + 1]))
