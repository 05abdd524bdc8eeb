"""Where a server listens, and who could reach it there."""

import ipaddress
import socket
import sys
from dataclasses import replace

from infra_lab.errors import ConfigError
from infra_lab.server.config import ServerConfig

LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
BACKLOG = 1024


def check_exposure(host: str, config: ServerConfig, *, insecure_no_auth: bool) -> None:
    """Raise ConfigError if others could reach the server and nobody would ask them for a key."""
    if not config.api_keys and not insecure_no_auth and not is_loopback(host):
        raise ConfigError(
            f"{host!r} can be reached from other machines, and there is no API key: anybody could use the model. Give "
            "--api-key-file (or INFRA_LAB_API_KEY), bind to 127.0.0.1, or say --insecure-no-auth"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address. A name other than localhost may resolve to anything."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def for_host(host: str, config: ServerConfig) -> ServerConfig:
    """Without keys, a local server is protected from web pages by the Host header, which they cannot choose."""
    if config.api_keys or config.allowed_hosts or not is_loopback(host):
        return config
    return replace(config, allowed_hosts=(*LOCAL_HOSTS, host.lower()))


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; port 0 takes a free one. Raises ConfigError if that cannot be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio sets TCP_NODELAY only where it is. Without it a stream's first event waits 40 ms:
    # Nagle's algorithm for an acknowledgement of the head, and the client for something to send along with it.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    if sys.platform != "win32":
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host.strip("[]"), port))
        listener.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        raise ConfigError(f"cannot listen on {host}:{port}: {error}; choose another --host or --port") from error
    listener.setblocking(False)
    return listener


def url_of(listener: socket.socket) -> str:
    """The URL that a listening socket answers at."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
