"""Loaded by every Python process below the server under test: writes down each address that it connects or sends to.

Python's audit events (PEP 578) miss nothing that goes through the `socket` module, however short the connection.
"""

import os
import sys

_EVENTS = {"socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname"}


def _write_down(event: str, arguments: tuple[object, ...]) -> None:
    if event not in _EVENTS:
        return
    host = arguments[0]
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = arguments[1]
        if not isinstance(address, tuple):  # a Unix socket, or a socket that is connected already
            return
        host = address[0]
    _append(event, host)


def _append(event: str, host: object) -> None:
    file = os.open(os.environ["INFRA_LAB_TEST_AUDIT"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, f"{event}\t{host}\tpid {os.getpid()}\n".encode())
    finally:
        os.close(file)


if "INFRA_LAB_TEST_AUDIT" in os.environ:
    _append("start", "localhost")
    sys.addaudithook(_write_down)
