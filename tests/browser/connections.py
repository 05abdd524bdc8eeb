"""Who the server and its kernels talk to: what Python's audit hook wrote down, and what the system's tables show.

The hook sees every connection and look-up of every Python process; the tables, sampled, also those of other programs.
"""

import ipaddress
import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

AUDIT_FOLDER = Path(__file__).parent / "audit"
SAMPLE_EVERY_S = 0.05


def audit_environment(log: Path) -> dict[str, str]:
    """Variables that make each Python process write down its connections to `log`."""
    paths = [str(AUDIT_FOLDER), os.environ.get("PYTHONPATH", "")]
    return {"INFRA_LAB_TEST_AUDIT": str(log), "PYTHONPATH": os.pathsep.join(filter(None, paths))}


class Connections:
    """What was seen in a `watch`; complete when its block has ended."""

    def __init__(self) -> None:
        self.audited: list[str] = []
        self.sampled: set[str] = set()
        self.num_samples = 0

    def foreign(self) -> list[str]:
        """Return a line for everything that was not on this machine's loopback."""
        lines = [line for line in self.audited if not is_loopback(line.split("\t")[1])]
        return [*dict.fromkeys(lines), *(f"connection to {ip}" for ip in sorted(self.sampled) if not is_loopback(ip))]


def is_loopback(host: str) -> bool:
    """Whether a host, by address or by name, is this machine talking to itself; names are not looked up."""
    if host in ("", "None", "localhost", socket.gethostname()):
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    address = getattr(address, "ipv4_mapped", None) or address  # ::ffff:127.0.0.1, as Python before 3.13 does not tell
    return address.is_loopback or address.is_unspecified


@contextmanager
def watch(processes: Callable[[], Iterable[psutil.Process]], log: Path) -> Iterator[Connections]:
    """Watch a family of processes while the block runs."""
    seen, is_over = Connections(), threading.Event()
    begin = log.stat().st_size if log.exists() else 0

    def sample() -> None:
        while not is_over.is_set():
            seen.sampled |= _remote_addresses(processes())
            seen.num_samples += 1
            is_over.wait(SAMPLE_EVERY_S)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield seen
    finally:
        is_over.set()
        sampler.join()
        if log.exists():
            seen.audited = log.read_bytes()[begin:].decode().splitlines()


def _remote_addresses(processes: Iterable[psutil.Process]) -> set[str]:
    found = set()
    for process in processes:
        try:
            found |= {connection.raddr.ip for connection in process.net_connections("inet") if connection.raddr}
        except psutil.NoSuchProcess:
            continue
    return found
