"""API keys: who a client is, and what it may use.

A key file has a line a key; what starts with # is a comment:

    # name   key                   at most as urgent as, requests and tokens a minute
    alice    sk-3f9a...            priority=0 rpm=600 tpm=200000
    batch    sk-77c1...            priority=10
"""

import hashlib
import hmac
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from infra_lab.errors import ConfigError

ENVIRONMENT_VARIABLE = "INFRA_LAB_API_KEY"
MIN_KEY_LENGTH = 8


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key. The secret itself is not kept, only its digest."""

    name: str
    """Stands in logs and metrics, where the key must not."""
    digest: bytes
    priority: int | None = None
    """The most urgent priority that it may ask for, and its default; None: any. Lower is more urgent."""
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None

    @classmethod
    def of(
        cls,
        name: str,
        secret: str,
        *,
        priority: int | None = None,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
    ) -> "ApiKey":
        """Make a key from its secret. Raises ConfigError for one that is short enough to guess."""
        if len(secret) < MIN_KEY_LENGTH:
            raise ConfigError(f"the API key {name!r} has {len(secret)} characters; give it at least {MIN_KEY_LENGTH}")
        return cls(name, digest_of(secret.encode()), priority, requests_per_minute, tokens_per_minute)


def digest_of(secret: bytes) -> bytes:
    """SHA-256: of one length for all, so that comparing tells nothing about a key's."""
    return hashlib.sha256(secret).digest()


def find_key(keys: Iterable[ApiKey], secret: bytes) -> ApiKey | None:
    """Return the key with this secret (UTF-8). Compares with every key, each in constant time."""
    digest, found = digest_of(secret), None
    for key in keys:
        if hmac.compare_digest(key.digest, digest):
            found = key
    return found


def load_keys(path: Path | None) -> tuple[ApiKey, ...]:
    """Read keys from a file, and one named "env" from INFRA_LAB_API_KEY if that is set.

    Raises ConfigError for a file that cannot be read or a line that is not as described above.
    """
    keys = []
    if secret := os.environ.get(ENVIRONMENT_VARIABLE):
        keys.append(ApiKey.of("env", secret))
    if path is not None:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the API key file {path} cannot be read: {error}") from error
        found = [_parse(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if _is_key(line)]
        if not found:
            raise ConfigError(f"the API key file {path} has no key; expected lines of: name key")
        keys += found
    return tuple(keys)


def _is_key(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _parse(line: str, where: str) -> ApiKey:
    name, *rest = line.split()
    if not rest:
        raise ConfigError(f"{where}: one word; expected: name key [priority=N] [rpm=N] [tpm=N]")
    options: dict[str, float] = {}
    for option in rest[1:]:
        field, _, value = option.partition("=")
        try:
            options[field] = float(int(value)) if field == "priority" else float(value)
        except ValueError:
            options[field] = -1.0 if field != "priority" else float("nan")
        if field not in ("priority", "rpm", "tpm") or not (field == "priority" or options[field] > 0):
            raise ConfigError(f"{where}: the option {option!r} is not known; expected priority=N, rpm=N, tpm=N")
        if options[field] != options[field]:
            raise ConfigError(f"{where}: {option!r}; a priority is a whole number")
    return ApiKey.of(
        name,
        rest[0],
        priority=int(options["priority"]) if "priority" in options else None,
        requests_per_minute=options.get("rpm"),
        tokens_per_minute=options.get("tpm"),
    )
