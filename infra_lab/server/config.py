"""What the server allows, and for how long it waits."""

from dataclasses import dataclass

from infra_lab.errors import ConfigError
from infra_lab.server.keys import ApiKey


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Limits of the HTTP side; the engine has its own. Raises ConfigError for a limit that makes no sense."""

    api_keys: tuple[ApiKey, ...] = ()
    """Who may come in; empty: everybody."""
    isolate_keys: bool = False
    """Give each key its own prefix cache: nobody can tell from a TTFT what another one has asked."""
    allowed_hosts: tuple[str, ...] = ()
    """Accepted Host headers, without port; empty: any. Keeps a web page from reaching a local server by DNS rebinding."""

    max_waiting: int = 256
    """Sequences accepted beyond those that the engine runs at once; then 429."""
    max_prompt_tokens: int | None = None
    """Tokens of one prompt, at most; None: as many as the model's context."""
    requests_per_minute: float | None = None
    """Of each key that sets no limit of its own (and of all who come without one, together)."""
    tokens_per_minute: float | None = None
    """Prompt and generated tokens, likewise."""
    request_timeout_s: float | None = None
    """The longest that a request may take; a request may ask for less."""

    max_body_bytes: int = 4 << 20
    head_timeout_s: float = 10.0
    """A connection that has not sent a whole request head by then is closed."""
    body_timeout_s: float = 30.0
    """A body that is not complete by then is refused with 408."""
    max_in_flight: int = 1024
    """HTTP requests of any kind that are answered at once; more get 503, but for probes."""

    chunk_tokens: int = 1
    """A stream sends an event for at least this many tokens; a request may choose for itself."""
    chunk_ms: float | None = None
    """A stream sends what it has when its oldest token has waited this long."""
    heartbeat_s: float = 4.0
    """A stream that has nothing to send sends a comment this often, the first one with its head: less than the 5 s that
    httpx waits for a byte, and than any proxy."""
    max_buffered_bytes: int = 256 << 10
    """What may pile up for a client that reads slowly; beyond, its stream ends with an error."""
    stalled_reader_s: float = 30.0
    """A client that takes nothing for this long while there is something to send is disconnected."""

    drain_s: float = 30.0
    """After SIGTERM, requests that run have this long to finish."""
    linger_s: float = 0.0
    """After SIGTERM, answer 503 for at least this long, so that load balancers notice before connections fail."""
    stall_s: float = 120.0
    """/health reports an engine that has work and has not finished a step for this long."""
    log_prompts: bool = False
    """Write prompts into the request log; they are somebody's."""

    def __post_init__(self) -> None:
        for name in ("max_waiting", "drain_s", "linger_s"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 0")
        for name in (
            "max_body_bytes", "head_timeout_s", "body_timeout_s", "max_in_flight", "chunk_tokens", "heartbeat_s",
            "max_buffered_bytes", "stalled_reader_s", "stall_s",
        ):  # fmt: skip
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be more than 0")
        for name in ("max_prompt_tokens", "requests_per_minute", "tokens_per_minute", "request_timeout_s", "chunk_ms"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name} is {value}; it must be more than 0, or None for no limit")
        names = [key.name for key in self.api_keys]
        if len(set(names)) < len(names):
            raise ConfigError(
                f"two API keys have the same name: {', '.join(sorted(names))}; names tell them apart in logs"
            )
