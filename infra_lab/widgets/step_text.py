"""What a step did, and what lies in a block, in words: for screen readers, saved notebooks and the details of a panel."""

from collections.abc import Sequence
from html import escape
from typing import Protocol

from infra_lab.engine.kv_map import BlockView, KVMap
from infra_lab.engine.recorder import StepRecord
from infra_lab.paged_kv.snapshot import BlockState

_MOST_TOKENS = 64


class Decoder(Protocol):
    """The part of a tokenizer that is needed here."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of token ids."""
        ...


def describe_step(record: StepRecord) -> str:
    """Return a few sentences on who was computed, admitted, preempted, copied and finished."""
    prefills = [chunk for chunk in record.chunks if not (chunk.num_tokens == 1 and chunk.token_id is not None)]
    text = f"Step {record.step}: {_count(record.num_decodes, 'decode')}"
    if prefills:
        tokens = sum(chunk.num_tokens for chunk in prefills)
        text += f", {_count(tokens, 'prefill token')} of {_count(len(prefills), 'request')}"
    text += f", {record.used_blocks} of {record.total_blocks} blocks in use."
    for admission in record.admitted:
        found = f" with {admission.num_cached_tokens} tokens from the prefix cache" * bool(admission.num_cached_tokens)
        text += f" Admitted {admission.request_id}{found}."
    for name in record.preempted:
        text += f" Preempted {name}: its blocks are freed, its tokens kept."
    for copy in record.copies:
        text += f" Copied on write: block {copy.source} to {copy.destination}."
    for ending in record.finished:
        text += f" Finished {ending.request_id} ({ending.reason})."
    return text


def describe_block(kv_map: KVMap, block: int, tokenizer: Decoder | None = None) -> list[tuple[str, str]]:
    """Return what is known of a block as (term, text) rows, in plain text; token text may hold any character."""
    view = kv_map.blocks[block]
    rows = [("Block", f"{block}, {_state(view)}")]
    for use in view.users:
        filled = f"{use.num_tokens} of {kv_map.block_size} slots filled"
        rows.append((use.request_id, f"table index {use.table_index}, {filled}"))
    if view.state is BlockState.USED:
        rows.append(("References", str(view.ref_count)))
    if view.ref_count > 1:
        is_full = len(view.token_ids) == kv_map.block_size
        rows.append(
            (
                "Sharing",
                "shared and full: nobody writes to it again, so nothing is copied"
                if is_full
                else "shared: copy-on-write happens when one of its owners writes the next token",
            )
        )
    if view.state is BlockState.CACHED:
        place = kv_map.eviction_order.index(block) + 1
        rows.append(("Eviction", f"number {place} of {len(kv_map.eviction_order)}, least recently used first"))
    if view.state is not BlockState.FREE:
        matchable = "a later request with the same prefix finds it" if view.is_matchable else "not in the prefix cache"
        rows.append(("Prefix", matchable))
    if view.token_ids:
        shown, more = view.token_ids[:_MOST_TOKENS], len(view.token_ids) - _MOST_TOKENS
        rows.append(("Token ids", " ".join(map(str, shown)) + (f" and {more} more" if more > 0 else "")))
        if tokenizer is not None:
            rows.append(("Text", tokenizer.decode(view.token_ids, skip_special_tokens=False)))
    return rows


def rows_to_html(rows: Sequence[tuple[str, str]]) -> str:
    """Return rows as an HTML table; everything is escaped, and what the model reads or writes stands in `code`."""
    cells = "".join(
        f"<tr><th scope='row'>{escape(term)}</th><td>{_code(text) if term in ('Token ids', 'Text') else escape(text)}</td></tr>"
        for term, text in rows
    )
    return f'<div class="infra-lab-details"><table>{cells}</table></div>'


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"


def _state(view: BlockView) -> str:
    if view.state is BlockState.CACHED:
        return "cached: nobody refers to it, its prefix can still be found until it is evicted"
    if view.state is BlockState.FREE:
        return "free"
    return "used by one request" if view.ref_count == 1 else f"shared by {view.ref_count} requests"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
