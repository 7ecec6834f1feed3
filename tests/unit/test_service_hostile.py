"""What nobody should send, a little of it; the recipe sends as much as wanted. And clients that take their time."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import re
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("faiss", reason="needs the extra serve")

from lightning_pfc.service import protocol
from lightning_pfc.service.protocol import WAITING
from lightning_pfc.service.telemetry import Telemetry
from lightning_pfc.service.whole_log import whole_log
from tests.serving import Running, b64


@pytest.fixture(scope="module")
def service(export_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(export_folder, tmp_path_factory.mktemp("hostile") / "gallery")
    yield running
    running.close()


def test_broken_pictures_and_requests_are_answered(export_folder: Path, pictures: Path) -> None:
    pytest.importorskip("schemathesis", reason="needs schemathesis, of the extra test")
    path = Path(__file__).parents[2] / "recipes" / "benchmarks" / "service" / "hostile.py"
    spec = importlib.util.spec_from_file_location("service_hostile", path)
    assert spec is not None
    assert spec.loader is not None
    hostile = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hostile)
    words = ["--requests", "150", "--pictures", "120", "--keys", "20"]
    assert hostile.main([str(export_folder), str(pictures), *words]) == 0


def test_small_answers_on_one_connection_do_not_wait(service: Running) -> None:
    """Without TCP_NODELAY each would wait 40 ms for the acknowledgement of the one before."""
    service.client.get("/health")
    times = []
    for _ in range(30):
        begun = time.perf_counter()
        service.client.get("/health")
        times.append(time.perf_counter() - begun)
    assert min(times) < 0.02


def test_clients_that_take_their_time_hold_nobody_up(service: Running, pictures: Path) -> None:
    body = (pictures / "id01" / "p0.png").read_bytes()
    head = b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    with ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection(service.address)) for _ in range(400)]
        for slow in idle[:20]:
            slow.sendall(head + b'{"image": "')  # and no more
        for gone in idle[20:40]:
            gone.sendall(head + b"{")
            gone.close()
        for half in idle[40:60]:
            half.sendall(b"POST /em")
        begun = time.perf_counter()
        for _ in range(5):
            assert service.client.post("/embed", files={"image": body}).status_code == 200
        assert time.perf_counter() - begun < 25


def _answer(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    connection.settimeout(10)
    parts = []
    while part := connection.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"x" * 200_000,
        b"GET /health HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 200_000,
        b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"A: x\r\n" * 30_000,
        b"POST /embed HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n" + b"A: x\r\n" * 30_000,
        b"POST /embed HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nA: " + b"x" * 200_000,
        b"POST /embed HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2;" + b"x" * 200_000,
    ],
    ids=["path", "header", "headers", "trailers", "trailer", "extension"],
)
def test_a_head_has_an_end(service: Running, head: bytes) -> None:
    with socket.create_connection(service.address) as connection:
        connection.settimeout(10)
        try:
            connection.sendall(head)
            said = _answer(connection)
        except ConnectionError:  # it was sent away before all was sent
            said = b"HTTP/1.1 400 "
    assert said.startswith(b"HTTP/1.1 400 ")
    assert service.client.get("/health").status_code == 200


def test_a_head_arrives_in_time(service: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.3)
    with socket.create_connection(service.address) as slow, socket.create_connection(service.address) as second:
        slow.sendall(b"GET /health HTTP/1.1\r\nHo")
        assert b"did not arrive within 0.3 s" in _answer(slow)
        # the head of a second request on a connection likewise
        second.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /hea")
        said = _answer(second)
        assert said.startswith(b"HTTP/1.1 200 ")
        assert b"did not arrive within 0.3 s" in said


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"A: x\r\n" * 15_000 + b"\r\n",
        b"GET /" + b"x" * 80_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /embed HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n" + b"A: x\r\n" * 15_000 + b"\r\n",
    ],
    ids=["headers", "path", "trailers"],
)
def test_a_head_that_comes_at_once_has_an_end_too(service: Running, head: bytes) -> None:
    """Its bound did not count where a request was whole within one read."""
    with socket.create_connection(service.address) as connection:
        connection.sendall(head)
        said = _answer(connection)
    assert b"may have 65536 bytes beside its body" in said


@pytest.mark.parametrize("said", [b"", b"\r\n", b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\n"])
def test_a_connection_that_says_nothing_is_closed(service: Running, said: bytes) -> None:
    """Also one that was never answered, and one that goes on to send what nobody reads."""
    service.config.timeout_keep_alive, before = 1, service.config.timeout_keep_alive
    try:
        with socket.create_connection(service.address) as connection:
            connection.sendall(said)
            connection.settimeout(0.05)
            found = b""
            while True:
                with suppress(TimeoutError):
                    part = connection.recv(1000)
                    if not part:
                        break
                    found += part
                with suppress(ConnectionError):
                    connection.sendall(b"\r\n" if len(said) < 3 else b"x")
    except ConnectionError:  # it had sent more than was read
        pass
    finally:
        service.config.timeout_keep_alive = before
    assert found.count(b"HTTP/1.1 200 ") == (len(said) > 2)


@pytest.mark.parametrize(
    "last",
    [
        b"GARBAGE\r\n\r\n",
        b"POST /embed HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=["head", "body"],
)
def test_what_came_before_a_refused_request_is_answered_first(service: Running, pictures: Path, last: bytes) -> None:
    """The refusal alone would be taken for the answer to the first."""
    body = json.dumps({"image": b64((pictures / "id01" / "p0.png").read_bytes())}).encode()
    head = b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    with socket.create_connection(service.address) as connection:
        connection.sendall((head % len(body) + body) * 2 + last)
        said = _answer(connection)
    assert re.findall(rb"HTTP/1.1 (\d+) ", said) == [b"200", b"200", b"400"]
    assert said.endswith(b'start the service with --tls."}')


def test_requests_that_nobody_waits_for(service: Running) -> None:
    with socket.create_connection(service.address) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 2000)
        try:
            said = _answer(connection)
        except ConnectionError:
            said = b""
    assert said.count(b"HTTP/1.1 200 ") < 2000
    assert service.client.get("/health").status_code == 200


def test_a_body_in_the_smallest_chunks(service: Running) -> None:
    """Their frames are five times as long as it."""
    body = b'{"image": "' + b"A" * 30_000 + b'"}'
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    head = b"POST /embed HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
    with socket.create_connection(service.address) as connection:
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
        said = _answer(connection)
    assert said.startswith(b"HTTP/1.1 422 ")
    assert b"no JPEG, PNG or WebP" in said


def test_heads_in_pieces_and_requests_one_after_the_other(service: Running, pictures: Path) -> None:
    body = (pictures / "id01" / "p0.png").read_bytes()
    form = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + body + b"\r\n--b--\r\n"
    head = b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: %d\r\n"
    with socket.create_connection(service.address) as connection:
        for last in (b"", b"Connection: close\r\n"):
            for part in (head[:30], (head % len(form))[30:], last + b"\r\n", form[:50], form[50:]):
                connection.sendall(part)
        said = _answer(connection)
    assert said.count(b"HTTP/1.1 200 ") == 2


_UPGRADE = b"Connection: keep-alive, Upgrade\r\nUpgrade: h2c\r\n"


@pytest.mark.parametrize("sent", ["whole", "pieces", "chunks"])
def test_a_wish_for_another_protocol_changes_nothing(service: Running, pictures: Path, sent: str) -> None:
    """`curl --http2` sends it with every request; the body was taken for bytes of that protocol."""
    body = json.dumps({"image": b64((pictures / "id01" / "p0.png").read_bytes())}).encode()
    size = b"Transfer-Encoding: chunked" if sent == "chunks" else b"Content-Length: %d" % len(body)
    framed = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if sent == "chunks" else body
    head = (
        b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" + size + b"\r\n" + _UPGRADE + b"\r\n"
    )
    last = b"GET /health HTTP/1.1\r\nHost: x\r\n" + _UPGRADE.replace(b"keep-alive", b"close") + b"\r\n"
    parts = [head[:90], head[90:], framed[:50], framed[50:] + last] if sent == "pieces" else [head + framed + last]
    with socket.create_connection(service.address) as connection:
        for part in parts:
            connection.sendall(part)
            if sent == "pieces":
                service.client.get("/health")  # the part before has been read then
        said = _answer(connection)
    assert said.count(b"HTTP/1.1 200 ") == 2
    first = said.split(b"\r\n\r\n")[1].partition(b"HTTP/1.1")[0]
    assert len(json.loads(first)["embedding"]) == 16
    assert said.endswith(b'{"status":"alive"}')


def test_a_body_is_never_a_request(service: Running) -> None:
    """What follows a wish for another protocol was read as the next request, whatever its length said."""
    body = b"GET /nobody-asked-for-this HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    head = b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n" % len(body)
    with socket.create_connection(service.address) as connection:
        connection.sendall(head + _UPGRADE.replace(b"keep-alive", b"close") + b"\r\n" + body)
        said = _answer(connection)
    assert said.startswith(b"HTTP/1.1 422 ")
    assert said.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (
            b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: WebSocket\r\n\r\n",
            b"no WebSockets",
        ),
        (b"CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n", b"no proxy: ask it for a path"),
        (b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * (WAITING + 2), b"16 requests wait on this connection"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"no request of HTTP/1.1"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"start the service with --tls"),
    ],
    ids=["websocket", "connect", "pipeline", "http2", "tls"],
)
def test_other_protocols_are_refused_in_json(service: Running, head: bytes, words: bytes) -> None:
    with socket.create_connection(service.address) as connection:
        connection.sendall(head)
        said = _answer(connection)
    *before, last = said.split(b"HTTP/1.1 ")[1:]
    assert (last[:4], all(answer.startswith(b"200 ") for answer in before)) == (b"400 ", True)
    assert words in json.loads(last.split(b"\r\n\r\n", 1)[1])["detail"].encode()


def test_what_libraries_log_is_json_too() -> None:
    lines = io.StringIO()
    before = logging.getLogger().handlers[:]
    with whole_log(Telemetry(lines)):
        logging.getLogger("uvicorn.error").warning("two\nlines of %s", "it")
        try:
            raise KeyError("a name that nobody may read")
        except KeyError:
            logging.getLogger("asyncio").exception("of a name that nobody may read")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    found = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert [(one["event"], one["source"]) for one in found] == [
        ("warning", "uvicorn.error"),
        ("error", "asyncio"),
        ("warning", "py.warnings"),
    ]
    assert [found[0]["text"], found[1]["error"]] == ["two lines of it", "KeyError"]
    assert "nobody may read" not in lines.getvalue()
    assert logging.getLogger().handlers == before
