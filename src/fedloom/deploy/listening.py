"""A listening HTTPS server in a thread of its own, and what its connections are asked to prove."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any

from fedloom.errors import ConfigError, FedloomError, MissingExtra

from .certs import Authority, Peer, peer_of, server_context

try:
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ImportError as e:
    raise MissingExtra("uvicorn", "deploy", "a coordinator of sites") from e

FIRST_BYTES = 15.0
"""Seconds a connection has to send the head of its first request."""


class Everybody:
    """The gate without certificates, on loopback: who is told apart by name alone."""

    def refusal(self, peer: Peer) -> str | None:
        return None


class _Connection(H11Protocol):
    """HTTP/1.1 whose requests carry the verified peer, and that does not wait for ever."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        if tls is not None:
            self.app_state = {**self.app_state, "peer": peer_of(tls.getpeercert())}
        self.loop.call_later(FIRST_BYTES, self._unless_asked)

    def _unless_asked(self) -> None:
        if self.cycle is None and not self.transport.is_closing():  # pyright: ignore[reportUnnecessaryComparison]
            self.transport.close()


class Listener:
    """Serves an app until `close`.

    Args:
        app: ASGI.
        listen: "HOST:PORT"; port 0: one the system picks, see `url`.
        certs: the authority's folder; None: plain HTTP, on loopback alone.

    Raises:
        ConfigError: plain HTTP that others could hear, or an address that cannot be had.
    """

    def __init__(self, app: Any, listen: str, certs: Path | None) -> None:
        host, port = address(listen)
        if certs is None and not is_loopback(host):
            raise ConfigError(
                f"--listen {listen} without certificates would send models in the clear to whoever listens; make some: "
                f"fedloom certs init --host {host}. Without them only loopback is served, as in --listen 127.0.0.1:8750"
            )
        context = None if certs is None else server_context(certs)
        self._socket = _bound(host, port)
        self.url = f"{'http' if context is None else 'https'}://{_written(host)}:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(
            app,
            http=_Connection,
            ws="none",
            lifespan="off",
            log_config=None,  # its lines go where ours go
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=2,
            h11_max_incomplete_event_size=16 << 10,
        )
        config.load()
        config.ssl = context
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._serve, name="fedloom-http", daemon=True)
        self._thread.start()
        end = time.monotonic() + 30
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > end:
                raise FedloomError(f"the server at {self.url} did not start")
            time.sleep(0.005)

    def _serve(self) -> None:
        asyncio.run(self._server.serve(sockets=[self._socket]))

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=15)
        self._socket.close()


def gate_of(certs: Path | None) -> Authority | Everybody:
    """Who may speak. Raises ConfigError where the authority cannot say."""
    if certs is None:
        return Everybody()
    authority = Authority(certs)
    authority.issued()
    return authority


def address(listen: str) -> tuple[str, int]:
    """`HOST:PORT` in two parts.

    Raises:
        ConfigError: something else.
    """
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"an address is HOST:PORT, as in 0.0.0.0:8750 or [::1]:0; given {listen!r}")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _written(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _bound(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # named: asyncio sends at once, then
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(where)
    except OSError as e:
        raise ConfigError(f"cannot listen at {host}:{port}: {e.strerror or e}") from None
    return made


__all__ = ["Listener", "address", "gate_of", "is_loopback", "ssl"]
