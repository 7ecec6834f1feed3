"""Send a service what nobody should: requests made from its own description, broken pictures, wrong keys.

python recipes/benchmarks/service/hostile.py EXPORT PICTURES --requests 10000 --pictures 10000

Counts answers by status. Ends with status 1 after any 5xx other than 503 and 507, an end of the service, a file written
outside the gallery, or memory that keeps growing. Needs schemathesis for the first part, which is left out without it.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from starting import command, service

_FINE = (503, 507)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 0 if the service bore it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path)
    parser.add_argument("folder", metavar="PICTURES", type=Path, help="one folder of pictures per identity")
    parser.add_argument("--requests", type=int, default=10_000, help="made from the description (10,000)")
    parser.add_argument("--pictures", type=int, default=10_000, help="broken ones (10,000)")
    parser.add_argument("--keys", type=int, default=2000, help="wrong keys of each kind, timed (2,000)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    good = sorted(path for path in options.folder.rglob("*") if path.suffix.lower() in (".jpg", ".png"))[:40]
    with tempfile.TemporaryDirectory() as place:
        tried = Service(options.export, Path(place))
        try:
            found: dict[str, Any] = {
                "pictures": _send_pictures(tried, good, options.pictures, random.Random(options.seed)),
                "requests": _send_requests(tried, options.requests, options.seed),
                "keys": _time_keys(tried, options.keys),
            }
        finally:
            faults = tried.end()
        found |= {"memory, MB": tried.memory, "faults": faults + tried.faults}
    print(json.dumps(found, indent=2))
    return int(bool(found["faults"]))


class Service:
    """A service of the command, watched from outside.

    Args:
        export: what it serves.
        place: an empty folder; its working folder, with the gallery in it.
    """

    def __init__(self, export: Path, place: Path) -> None:
        self.place, self.faults, self.memory = place, list[str](), list[float]()
        self.key = self._command(export, "--make-key", "all", "--scopes", "read,enrol,admin").strip()
        words = ["--keys", "keys.json", "--max-pixels", "4000000", *self._gallery(export)]
        self._logs = Path(tempfile.mkdtemp())
        self.process, self.host = service(
            self._logs / "log", export.resolve(), *words, cwd=place, env={**os.environ, "TMPDIR": str(place)}
        )
        self._before = self._files()

    def _gallery(self, export: Path) -> list[str]:
        from lightning_pfc.deploy import Recogniser
        from lightning_pfc.gallery.addresses import create_gallery
        from lightning_pfc.gallery.enrolling import model_record

        create_gallery(str(self.place / "gallery"), model_record(Recogniser.load(export))).close()
        return ["--gallery", "gallery"]

    def _command(self, export: Path, *words: str) -> str:
        process = command(
            "serve", export.resolve(), "--keys", "keys.json", *words, cwd=self.place, stdout=subprocess.PIPE
        )
        return process.communicate()[0]

    def _files(self) -> set[str]:
        return {str(path) for path in self.place.rglob("*") if "gallery" not in path.parts[-2:]}

    def ask(self, method: str, path: str, body: bytes | None = None, key: str | None = None, **headers: str) -> int:
        """One request on a connection of its own; the status."""
        connection = http.client.HTTPConnection(self.host, timeout=60)
        try:
            headers = {"Authorization": f"Bearer {key or self.key}", **headers}
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            answer.read()
            return self.note(answer.status, f"{method} {path}")
        finally:
            connection.close()

    def note(self, status: int, what: str) -> int:
        """Remember a status that must not be."""
        if status >= 500 and status not in _FINE:
            self.faults.append(f"{status} for {what}")
        return status

    def measure(self) -> None:
        """Remember how much memory it has now."""
        line = next(
            line for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines() if "VmRSS" in line
        )
        self.memory.append(round(int(line.split()[1]) / 1024, 1))

    def end(self) -> list[str]:
        """End it; what was wrong with it."""
        alive = self.process.poll() is None
        self.process.terminate()
        status = self.process.wait(60)
        found = [] if alive and status == 0 else [f"the service ended with {status}, alive before: {alive}"]
        found += [f"{name} was written" for name in sorted(self._files() - self._before)]
        half = len(self.memory) // 2
        if half > 2 and max(self.memory[half:]) > 1.2 * max(self.memory[:half]) + 50:
            found.append(f"memory grew from {max(self.memory[:half])} to {max(self.memory[half:])} MB")
        shutil.rmtree(self._logs)
        return found


# --- pictures ---------------------------------------------------------------------------------------------------------


def _send_pictures(service: Service, good: list[Path], count: int, chance: random.Random) -> dict[str, int]:
    found: Counter[int] = Counter()
    data = [path.read_bytes() for path in good]
    makers = _makers()
    for number in range(count):
        if number % max(1, count // 20) == 0:
            service.measure()
        picture = makers[number % len(makers)](data[chance.randrange(len(data))], chance)
        path = ("/embed", "/search", "/identities")[number % 3]
        body = {"image": base64.b64encode(picture).decode(), **({"name": f"n{number}"} if path[1] == "i" else {})}
        status = service.ask("POST", path, json.dumps(body).encode(), Content_Type="application/json")
        found[status] += 1
    return {str(status): found[status] for status in sorted(found)}


def _makers() -> list[Callable[[bytes, random.Random], bytes]]:
    """Ways to spoil an encoded picture, or to give something else for one."""
    rng = np.random.default_rng(0)
    pixels = Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8))

    def saved(kind: str) -> bytes:
        out = io.BytesIO()
        pixels.save(out, kind)
        return out.getvalue()

    others = [saved(kind) for kind in ("TIFF", "BMP", "GIF", "EPS", "PPM", "ICO")]
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("a.png", bytes(10**6))
    others += [
        archive.getvalue(), b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', b"",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(w) (x) file\n", b"P6 99999 99999 255\n",
    ]  # fmt: skip

    def cut(data: bytes, chance: random.Random) -> bytes:
        return data[: chance.randrange(len(data))]

    def flipped(data: bytes, chance: random.Random) -> bytes:
        found = bytearray(data)
        for _ in range(chance.randint(1, 20)):
            found[chance.randrange(len(found))] = chance.randrange(256)
        return bytes(found)

    def header(data: bytes, chance: random.Random) -> bytes:
        found = bytearray(data)
        for _ in range(4):
            found[chance.randrange(min(60, len(found)))] = chance.randrange(256)
        return bytes(found)

    def spliced(data: bytes, chance: random.Random) -> bytes:
        start = chance.randrange(len(data))
        return data[:start] + chance.randbytes(chance.randrange(2000)) + data[start:]

    return [
        cut, flipped, header, spliced, lambda data, chance: _bomb(chance), lambda data, chance: chance.choice(others),
    ]  # fmt: skip


def _bomb(chance: random.Random) -> bytes:
    """A small PNG that claims to be large."""
    side = chance.choice([5000, 20_000, 60_000, 2**31 - 1])

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(10**5))) + chunk(b"IEND", b"")


# --- requests from the description ------------------------------------------------------------------------------------


def _send_requests(service: Service, count: int, seed: int) -> dict[str, int] | str:
    try:
        import hypothesis
        import schemathesis
    except ImportError as error:
        return f"left out: {error}"
    headers = {"Authorization": f"Bearer {service.key}"}
    schema = schemathesis.openapi.from_url(f"http://{service.host}/openapi.json", headers=headers)
    operations = [one.ok() for one in schema.get_all_operations()]  # type: ignore[union-attr]  # an error ends the recipe
    found: Counter[int] = Counter()
    for operation in operations:
        service.measure()

        def send(case: Any) -> None:
            status = case.call(headers=headers, timeout=60).status_code
            found[service.note(status, f"{case.method} {case.path}")] += 1

        settings = hypothesis.settings(
            max_examples=-(-count // len(operations)), deadline=None, database=None,
            phases=[hypothesis.Phase.generate], suppress_health_check=list(hypothesis.HealthCheck),
        )  # fmt: skip
        hypothesis.seed(seed)(settings(hypothesis.given(case=operation.as_strategy())(send)))()
    return {str(status): found[status] for status in sorted(found)}


# --- keys -------------------------------------------------------------------------------------------------------------


def _time_keys(service: Service, count: int) -> dict[str, float]:
    """Median microseconds until a key is refused that differs in its first, or in its last character."""
    first = _other(service.key[0]) + service.key[1:]
    last = service.key[:-1] + _other(service.key[-1])
    times: dict[str, list[float]] = {"first": [], "last": []}
    connection = http.client.HTTPConnection(service.host, timeout=60)
    for name, key in _alternating(("first", first), ("last", last), count):
        begun = time.perf_counter()
        connection.request("GET", "/identities", headers={"Authorization": f"Bearer {key}"})
        answer = connection.getresponse()
        answer.read()
        times[name].append(time.perf_counter() - begun)
        if answer.status != 401:
            service.faults.append(f"a wrong key was answered {answer.status}")
    connection.close()
    return {name: round(1e6 * float(np.median(found)), 1) for name, found in times.items() if found}


def _alternating(a: tuple[str, str], b: tuple[str, str], count: int) -> Iterator[tuple[str, str]]:
    for number in range(2 * count):
        yield (a, b)[number % 2]


def _other(character: str) -> str:
    return "a" if character != "a" else "b"


if __name__ == "__main__":
    sys.exit(main())
