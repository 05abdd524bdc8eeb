"""`claim("4.2-03", {...}, because=...)`: one of the chapter's claims, with a verdict that the cell computes."""

from collections.abc import Mapping
from typing import Any

from infra_lab.course.ledger import LedgerClaim, Verdict, ledger_claim
from infra_lab.course.output import BAD, CLAIM_MIME, GOOD, MIXED, NEUTRAL, card, escape, show
from infra_lab.errors import ConfigError

_SIGNS: dict[Verdict, tuple[str, str]] = {
    "holds": ("holds", GOOD),
    "holds-under-conditions": ("holds under conditions", MIXED),
    "wrong": ("does not hold", BAD),
    "unverifiable": ("cannot be settled here", NEUTRAL),
}


def claim(
    claim_id: str, holds: bool | Mapping[str, bool] | None = None, *, because: str, unverifiable: bool = False
) -> None:
    """Show a claim of the ledger with the verdict that follows from what was computed.

        claim("4.2-01", per_token.is_constant, because="each token adds the same bytes")
        claim("4.2-03", {"lengths unknown": a < 0.4, "lengths known": b < 0.4}, because=f"{a:.0%} against {b:.0%}")
        claim("1.1-05", unverifiable=True, because="OpenAI has published no figure")

    True, or true in every case: holds. True in some: holds under conditions. False, or in none: wrong. Raises
    ConfigError for an unknown id, and for a condition that is not a bool (a number that is merely not zero proves nothing).
    """
    entry = ledger_claim(claim_id)
    cases = _cases(claim_id, holds, unverifiable)
    verdict = _verdict(cases)
    if not because.strip():
        raise ConfigError(f"claim({claim_id!r}): because is empty; say what was computed")
    show(_bundle(entry, verdict, cases, because))


def _cases(claim_id: str, holds: bool | Mapping[str, bool] | None, unverifiable: bool) -> dict[str, bool]:
    if unverifiable == (holds is not None):
        raise ConfigError(
            f"claim({claim_id!r}): give what was computed (a bool, or a bool for each case) or unverifiable=True"
        )
    if unverifiable:
        return {}
    cases = dict(holds) if isinstance(holds, Mapping) else {"": holds}
    if not cases:
        raise ConfigError(f"claim({claim_id!r}): no case was given")
    for name, value in cases.items():
        if type(value).__name__ not in ("bool", "bool_"):  # bool_ is NumPy's in either version
            raise ConfigError(
                f"claim({claim_id!r}): {name or 'the condition'} is {value!r}; expected a comparison's True or False"
            )
    return {name: bool(value) for name, value in cases.items()}


def _verdict(cases: dict[str, bool]) -> Verdict:
    if not cases:
        return "unverifiable"
    if all(cases.values()):
        return "holds"
    return "holds-under-conditions" if any(cases.values()) else "wrong"


def _bundle(entry: LedgerClaim, verdict: Verdict, cases: dict[str, bool], because: str) -> dict[str, Any]:
    words, accent = _SIGNS[verdict]
    named = [(name, holds) for name, holds in cases.items() if name]
    lines = [f"{entry.id}  “{entry.claim}”", f"  verdict: {words}"]
    lines += [f"  {'✓ holds' if holds else '✗ does not hold'}: {name}" for name, holds in named]
    lines.append(f"  because: {because}")
    rows = "".join(
        f'<div style="color:{GOOD if holds else BAD}">{"✓ holds" if holds else "✗ does not hold"}: {escape(name)}</div>'
        for name, holds in named
    )
    badge = f'<span style="background:{accent};color:white;border-radius:3px;padding:0 6px">{words}</span>'
    body = f"<div><i>“{escape(entry.claim)}”</i></div>{rows}<div>{escape(because)}</div>"
    return {
        "text/plain": "\n".join(lines),
        "text/html": card(f"{entry.id} {badge}", body, accent=accent),
        CLAIM_MIME: {"id": entry.id, "verdict": verdict, "cases": dict(named)},
    }
