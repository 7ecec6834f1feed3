"""Listening: where, who may, and how it ends."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from lightning_pfc.service.protocol import BoundedHttp

_HANDLED = (signal.SIGINT, signal.SIGTERM)


class ListenError(ValueError):
    """The service may not, or cannot, listen there."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
        ListenError: if the port is taken or the address is not this machine's.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        # with the protocol named, asyncio sends small answers at once: without, each waits 40 ms for the one before
        found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except socket.gaierror as error:
        raise ListenError(f"--host {host!r} is no address of this machine: {error.strerror}; name one.") from error
    except OSError as error:
        other = "--host" if error.errno == errno.EADDRNOTAVAIL else "--port"
        raise ListenError(f"port={port} on {host}: {error.strerror or error}; choose another with {other}.") from error
    found.listen(2048)
    return found


def address_of(sock: socket.socket, scheme: str) -> str:
    """Where a socket listens, as clients write it: an address of IPv6 in brackets."""
    host, port = sock.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def check_tls(certificate: str, key: str) -> None:
    """Whether there are a certificate and its key.

    Raises:
        ListenError: if not; names the file.
    """
    for path in (certificate, key):
        if not Path(path).is_file():
            raise ListenError(f"--tls: no such file: {path}; give a certificate and its key, in PEM.")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: "")
    except OSError as error:
        raise ListenError(
            f"--tls: {certificate} and {key} are no certificate and its key without a password, in PEM: "
            f"{error.strerror or error}."
        ) from error


def raise_file_limit() -> None:
    """Let as many clients be connected as the system allows this process."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Server(uvicorn.Server):
    """Ends on SIGTERM or SIGINT as if nothing had happened: what is under way is finished, and the status is 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """While it serves; uvicorn's own raises the signal again afterwards."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: FrameType | None) -> None:
            self.should_exit = True

        before = {number: signal.signal(number, stop) for number in _HANDLED}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def configured(app: ASGIApp, *, grace: float = 30.0, tls: tuple[str, str] | None = None) -> uvicorn.Config:
    """How :func:`serve` has uvicorn listen, with the same arguments."""
    return uvicorn.Config(
        app,
        http=BoundedHttp,
        ws="none",  # whatever is installed
        log_config=None,  # the process's own
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=round(grace),
        timeout_keep_alive=30,
        ssl_certfile=tls[0] if tls else None,
        ssl_keyfile=tls[1] if tls else None,
    )


def serve(app: ASGIApp, sock: socket.socket, *, grace: float = 30.0, tls: tuple[str, str] | None = None) -> None:
    """Answer requests until a signal ends it.

    Args:
        app: the application.
        sock: listens already.
        grace: seconds that requests under way have to finish.
        tls: files of certificate and key; None: plain HTTP.
    """
    raise_file_limit()
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.0005)  # else threads of pictures and network wait 5 ms for that of requests to give way
    try:
        Server(configured(app, grace=grace, tls=tls)).run(sockets=[sock])
    finally:
        sys.setswitchinterval(before)
