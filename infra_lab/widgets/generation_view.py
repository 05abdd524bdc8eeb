"""How a generation looks: its text with nothing in it that acts, its tokens, its line of figures, its style."""

from collections.abc import Sequence
from html import escape

from infra_lab.models.tokenizer import Tokenizer
from infra_lab.widgets import theme
from infra_lab.widgets.figures.parts import si
from infra_lab.widgets.generation_run import Generation, three_digits
from infra_lab.widgets.style import ROOT_CLASS


def speed_html(run: Generation) -> str:
    """Return the line of figures: time to first token, tokens/s, and a bar of the achieved bandwidth."""
    ttft_s = run.metrics.ttft_s if run.metrics else None
    parts = [_figure("–" if ttft_s is None else three_digits(ttft_s * 1e3), "ms to the first token")]
    parts.append(_figure("–" if run.tokens_per_s is None else three_digits(run.tokens_per_s), "tokens/s"))
    share, achieved = run.share_of_ceiling or 0.0, run.achieved_bytes_per_s or 0.0
    limit = si(run.read_bytes_per_s, "B/s")
    said = f"{si(achieved, 'B/s')} of {limit}" if achieved else f"– of {limit}"
    meter = (
        f'<span class="infra-lab-meter" role="meter" aria-label="share of memory bandwidth" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{100 * min(share, 1.0):.0f}" title="{said}">'
        f'<span style="width:{100 * min(share, 1.0):.1f}%"></span></span>'
    )
    parts.append(f"<span>{meter} {said} <small>weights × tokens/s, of what memory delivers</small></span>")
    return f'<div class="infra-lab-speed">{"".join(parts)}</div>'


def _figure(value: str, unit: str) -> str:
    return f"<span><b>{value}</b> {unit}</span>"


def printable_html(text: str) -> str:
    """Return text as HTML in which nothing acts: tags are escaped, control characters spelled out."""
    return "".join(
        character if character in "\n\t\u200d" or character.isprintable() else _odd(character.encode())
        for character in escape(text)
    )


def tokens_html(token_ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """Return one element a token; special tokens by name, bytes that are no text of their own as \\xE4."""
    return "".join(
        f'<span class="infra-lab-token" title="token {token_id}">{_token(token_id, tokenizer)}</span>'
        for token_id in token_ids
    )


def _token(token_id: int, tokenizer: Tokenizer) -> str:
    if token_id in tokenizer.special_token_ids:
        return f'<span class="infra-lab-odd">{escape(tokenizer.token_text(token_id) or "")}</span>'
    raw = tokenizer.token_bytes(token_id)
    try:
        return printable_html(raw.decode()).replace("\n", '<span class="infra-lab-odd">↵</span>\n')
    except UnicodeDecodeError:  # a part of a character
        return _odd(raw)


def _odd(raw: bytes) -> str:
    spelled = "".join(f"\\x{byte:02X}" for byte in raw)
    return f'<span class="infra-lab-odd">{spelled}</span>'


GENERATION_CSS = """
.ROOT .infra-lab-prompt-box { display: block; height: auto; margin: 2px 0 6px; }
.ROOT .infra-lab-prompt-box .widget-label { font-size: 12px; color: var(--jp-ui-font-color1); }
.ROOT .infra-lab-prompt-box textarea { width: 100%; min-height: 3.4em; border-radius: 6px;
  font-family: var(--jp-code-font-family); }
.ROOT .infra-lab-actions .infra-lab-primary { background: var(--jp-brand-color1); border-color: var(--jp-brand-color1);
  color: var(--jp-ui-inverse-font-color1); font-weight: 600; }
.ROOT .infra-lab-actions .infra-lab-primary:hover:enabled { background: var(--jp-brand-color0); }
.ROOT .infra-lab-stream { display: flex; flex-direction: column-reverse; min-height: 4.5em; max-height: 17em; overflow-y: auto;
  padding: 8px 12px; border-radius: 6px; border: 1px solid var(--jp-border-color2); background: var(--jp-layout-color0);
  font-family: var(--jp-code-font-family); font-size: 13px; line-height: 1.6; color: var(--jp-content-font-color1); }
.ROOT .infra-lab-stream > div { margin-bottom: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
.ROOT .infra-lab-prompt { color: var(--jp-ui-font-color2); }
.ROOT .infra-lab-token { border-radius: 3px; box-shadow: inset -1px 0 0 var(--jp-border-color1); }
.ROOT .infra-lab-token:nth-child(even) { background: color-mix(in srgb, var(--jp-brand-color1) 14%, transparent); }
.ROOT .infra-lab-odd { font-size: 11px; color: var(--jp-warn-color0); }
.ROOT .infra-lab-speed { display: flex; flex-wrap: wrap; gap: 4px 22px; align-items: baseline; padding: 6px 0 2px;
  font-size: 13px; font-variant-numeric: tabular-nums; color: var(--jp-ui-font-color1); }
.ROOT .infra-lab-speed b { font-size: 17px; }
.ROOT .infra-lab-speed small { color: var(--jp-ui-font-color2); font-size: 12px; }
.ROOT .infra-lab-meter { display: inline-block; width: 130px; height: 9px; border-radius: 5px; overflow: hidden;
  vertical-align: middle; background: var(--jp-layout-color2); box-shadow: inset 0 0 0 1px var(--jp-border-color1); }
.ROOT .infra-lab-meter > span { display: block; height: 100%; background: BAR; }
""".replace("ROOT", ROOT_CLASS).replace("BAR", theme.DECODE)
