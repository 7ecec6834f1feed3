"""The service beside the bare engine: the same pictures, decoded and embedded, by 1, 8 and 32 clients, taking turns.

python recipes/benchmarks/service/throughput.py EXPORT PICTURES --seconds 10

A client of the bare engine is a thread that decodes a picture and calls the network with it; a client of the service
sends the picture over HTTP and waits. Clients and service share the machine, which takes from the service what an
engine without clients keeps: so the processor time of a picture is given too, that of the engine's process beside that
of the service's, clients not counted.

``--idle 1000`` has eight clients work alone and beside that many idle connections, a client that sends a byte at a time
and others that hang up, taking turns. ``--requests 100000`` watches the memory of the service over that many.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from crowd import crowd
from starting import service

Work = Callable[[], Callable[[bytes], None]]
"""Makes one client: it is called with an encoded picture."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement (10)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each kind, taking turns (3)")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--idle", type=int, default=0, help="work beside so many idle connections too")
    parser.add_argument("--requests", type=int, default=0, help="watch the memory over so many")
    options = parser.parse_args(arguments)
    files = sorted(path for path in options.pictures.rglob("*") if path.suffix.lower() in (".jpg", ".png"))[:200]
    pictures = [path.read_bytes() for path in files]
    with tempfile.TemporaryDirectory() as folder:
        process, host = service(Path(folder) / "log", options.export)
        try:
            kinds = {"engine": _engine(options.export), "service": lambda: _client(host)}
            of = {"engine": os.getpid(), "service": process.pid}
            found = [_compare(kinds, of, count, pictures, options) for count in options.clients]
            beside = _beside_a_crowd(host, pictures, options) if options.idle else {}
            memory = _memory(process.pid, kinds["service"], pictures, options.requests) if options.requests else []
        finally:
            process.terminate()
            process.wait(60)
    print(json.dumps({"clients": found, "beside a crowd": beside, "memory": memory}, indent=2))
    return 0


def _engine(export: Path) -> Work:
    from lightning_pfc.deploy import Recogniser

    recogniser = Recogniser.load(export)

    def made() -> Callable[[bytes], None]:
        return lambda picture: (recogniser.embed([picture]), None)[1]

    return made


def _client(host: str) -> Callable[[bytes], None]:
    connection = http.client.HTTPConnection(host, timeout=120)
    edge = "b0undary"
    head = f'--{edge}\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'.encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={edge}"}

    def send(picture: bytes) -> None:
        connection.request("POST", "/embed", head + picture + f"\r\n--{edge}--\r\n".encode(), headers)
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise RuntimeError(f"the service answered {answer.status}")

    return send


def _run(work: Work, count: int, pictures: list[bytes], until: Callable[[int], bool]) -> tuple[float, list[float]]:
    """Requests a second and the time of each, in ms, of some clients at once."""
    times: list[float] = []
    errors: list[BaseException] = []

    def client(number: int) -> None:
        try:
            send = work()
            while until(len(times)) and not errors:
                begun = time.perf_counter()
                send(pictures[(len(times) + 7 * number) % len(pictures)])
                times.append(1e3 * (time.perf_counter() - begun))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(count)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return len(times) / (time.perf_counter() - begun), times


def _processor_ms(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return 1e3 * (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _compare(
    kinds: dict[str, Work], of: dict[str, int], count: int, pictures: list[bytes], options: argparse.Namespace
) -> dict[str, Any]:
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    costs: dict[str, list[float]] = {kind: [] for kind in kinds}
    for turn in range(options.rounds + 1):
        for kind, work in kinds.items():
            end = time.perf_counter() + (options.seconds if turn else 2.0)
            before = _processor_ms(of[kind])
            rate, each = _run(work, count, pictures, lambda done, end=end: time.perf_counter() < end)
            if turn:  # the first is for warming up
                costs[kind].append((_processor_ms(of[kind]) - before) / len(each))
                rates[kind].append(rate)
                times[kind] += each
    found: dict[str, Any] = {"clients": count}
    for kind in kinds:
        found[f"{kind}, pictures a second"] = round(statistics.median(rates[kind]), 1)
        found[f"{kind}, processor ms a picture"] = round(statistics.median(costs[kind]), 2)
        found[f"{kind}, ms, 50th and 99th"] = [round(float(np.percentile(times[kind], q)), 1) for q in (50, 99)]
    ratios = [a / b for a, b in zip(rates["service"], rates["engine"], strict=True)]
    costs_of = [a / b for a, b in zip(costs["engine"], costs["service"], strict=True)]
    return found | {
        "service / engine": round(statistics.median(ratios), 3),
        "service / engine, by processor time": round(statistics.median(costs_of), 3),
    }


def _beside_a_crowd(host: str, pictures: list[bytes], options: argparse.Namespace) -> dict[str, Any]:
    """Eight clients alone and beside the crowd, taking turns."""
    rates: dict[str, list[float]] = {"alone": [], "beside": []}
    times: dict[str, list[float]] = {"alone": [], "beside": []}
    found: dict[str, Any] = {"idle": options.idle}
    for _ in range(options.rounds):
        for kind in rates:
            with crowd(host, options.idle) if kind == "beside" else contextlib.nullcontext({}) as said:
                end = time.perf_counter() + options.seconds
                rate, each = _run(lambda: _client(host), 8, pictures, lambda done, end=end: time.perf_counter() < end)
            rates[kind].append(rate)
            times[kind] += each
            found |= said
    for kind in rates:
        found[f"{kind}, pictures a second"] = round(statistics.median(rates[kind]), 1)
        found[f"{kind}, ms, 50th and 99th"] = [round(float(np.percentile(times[kind], q)), 1) for q in (50, 99)]
    ratios = [a / b for a, b in zip(rates["beside"], rates["alone"], strict=True)]
    return found | {"beside / alone": round(statistics.median(ratios), 3)}


def _memory(pid: int, work: Work, pictures: list[bytes], requests: int) -> list[dict[str, float]]:
    """Resident memory, and times of requests, after each tenth of them."""
    found = []
    for part in range(10):
        _, times = _run(work, 8, pictures, lambda done: done < requests // 10)
        status = Path(f"/proc/{pid}/status").read_text()
        resident = int(status.split("VmRSS:")[1].split()[0]) / 1024
        middle, slow = np.percentile(times, [50, 99]).round(1).tolist()
        found.append(
            {"requests": (part + 1) * requests // 10, "MB": round(resident, 1), "ms, 50th": middle, "99th": slow}
        )
        print(found[-1], file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
