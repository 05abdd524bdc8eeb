"""The server under load: where it is, and how it is asked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from infra_lab.errors import ConfigError, InfraLabError

Endpoint = Literal["completions", "chat"]
_PATHS: dict[Endpoint, str] = {"completions": "/completions", "chat": "/chat/completions"}


class TargetError(InfraLabError, OSError):
    """A server that cannot be loaded: it is not there, or does not answer as an OpenAI-compatible server does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """An OpenAI-compatible server. Raises ConfigError for what cannot be one."""

    url: str
    """"http://127.0.0.1:8000", with or without "/v1"."""
    model: str | None = None
    """None: the first that the server lists."""
    endpoint: Endpoint = "completions"
    api_key: str | None = field(default=None, repr=False)
    timeout_s: float = 600.0
    """A request that is not over so long after it was due has failed."""
    max_connections: int = 1024
    """Requests in flight, at most; those beyond wait in the client, and their waiting counts."""
    ignore_eos: bool = True
    """Have every output be as long as planned (vLLM's field; SGLang and this project know it too, OpenAI does not)."""
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of every request; they win."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"the URL is {self.url!r}; expected something like http://127.0.0.1:8000")
        if self.endpoint not in get_args(Endpoint):
            raise ConfigError(f"the endpoint is {self.endpoint!r}; known: {', '.join(get_args(Endpoint))}")
        if not self.timeout_s > 0:
            raise ConfigError(f"the timeout is {self.timeout_s:g} s; it must be more than 0")
        if self.max_connections < 1:
            raise ConfigError(f"the bound on connections is {self.max_connections}; it must be at least 1")

    @property
    def base_url(self) -> str:
        """With "/v1", unless the URL has a path of its own."""
        url = self.url.rstrip("/")
        return url if urlsplit(url).path else url + "/v1"

    @property
    def generate_url(self) -> str:
        """Where requests are posted."""
        return self.base_url + _PATHS[self.endpoint]

    @property
    def headers(self) -> dict[str, str]:
        """Of every request; compression would hide when tokens come."""
        fixed = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
        return fixed if self.api_key is None else {**fixed, "Authorization": f"Bearer {self.api_key}"}

    def body(self, prompt: str, max_tokens: int, *, stream: bool = True) -> dict[str, Any]:
        """One request's fields. The same prompt twice is the same work: sampling is greedy."""
        content: dict[str, Any] = {"model": self.model or "", "max_tokens": max_tokens, "temperature": 0.0}
        if self.endpoint == "chat":
            content["messages"] = [{"role": "user", "content": prompt}]
        else:
            content["prompt"] = prompt
        if stream:
            content |= {"stream": True, "stream_options": {"include_usage": True}}
        if self.ignore_eos:
            content["ignore_eos"] = True
        return content | dict(self.extra_body)
