"""What nobody should send, a little of it; the recipe sends as much as wanted. And clients that take their time."""

from __future__ import annotations

import importlib.util
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("faiss", reason="needs the extra serve")

from tests.serving import Running


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
        assert time.perf_counter() - begun < 10
