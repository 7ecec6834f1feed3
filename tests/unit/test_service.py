"""The service: what it answers, what it refuses and before what, how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("faiss", reason="needs the extra serve")

import httpx

from lightning_pfc.commands.serve import main
from lightning_pfc.gallery import GalleryError
from lightning_pfc.service.batcher import Batcher, QueueFullError
from lightning_pfc.service.key_file import KeyFile
from lightning_pfc.service.keys import KeyFileError, Keys
from lightning_pfc.service.limits import Limits
from lightning_pfc.service.lock import service_lock
from lightning_pfc.service.server import ListenError, address_of, is_loopback, listening_socket, serve
from tests import console
from tests.detector_files import plant, write_yunet
from tests.serving import Running, b64, unit


@pytest.fixture(scope="module")
def service(export_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(export_folder, tmp_path_factory.mktemp("served") / "gallery")
    yield running
    running.close()


@pytest.fixture(scope="module")
def encoded(pictures: Path) -> dict[str, list[bytes]]:
    return {
        folder.name: [file.read_bytes() for file in sorted(folder.iterdir())] for folder in sorted(pictures.iterdir())
    }


# --- answers ----------------------------------------------------------------------------------------------------------


def test_embeddings_are_the_recogniser_s(service: Running, encoded: dict[str, list[bytes]]) -> None:
    data = [one for several in list(encoded.values())[:5] for one in several]
    expected = service.recogniser.embed(data)
    found = service.client.post("/embed", json={"images": [b64(one) for one in data]}).json()["embeddings"]
    assert (unit(found) * unit(expected)).sum(1).min() > 1 - 1e-5
    single = service.client.post("/embed", json={"image": b64(data[0])}).json()
    assert list(single) == ["embedding"]
    assert unit(single["embedding"]) @ unit(expected[0]) > 1 - 1e-5
    form = service.client.post("/embed", files=[("image", ("a", data[0])), ("image", ("b", data[1]))]).json()
    np.testing.assert_allclose(form["embeddings"], expected[:2], rtol=1e-3, atol=1e-4)
    form = service.client.post("/embed", files={"image": ("a", data[0])}).json()
    np.testing.assert_allclose(form["embedding"], expected[0], rtol=1e-3, atol=1e-4)


def test_comparing(service: Running, encoded: dict[str, list[bytes]]) -> None:
    (a, b, *_), (c, *_) = list(encoded.values())[:2]
    for body in ({"json": {"a": b64(a), "b": b64(b)}}, {"files": {"a": a, "b": b}}):
        same = service.client.post("/compare", **body).json()
        assert same["score"] == pytest.approx(service.recogniser.compare(a, b).score, abs=1e-5)
        assert same["same"] is (same["score"] > 0.5)
        assert (same["far"], same["interval"], same["threshold"]) == (0.01, [0.005, 0.02], "far=1e-2")
    named = service.client.post("/compare", json={"a": b64(a), "b": b64(c), "threshold": "far=1e-2"})
    assert named.json()["far"] == 0.01
    unknown = service.client.post("/compare", json={"a": b64(a), "b": b64(c), "threshold": "far=1e-3"})
    assert (unknown.status_code, "far=1e-3" in unknown.json()["detail"]) == (422, True)


def test_an_export_that_was_never_calibrated_decides_nothing(
    export_folder: Path, tmp_path: Path, encoded: dict[str, list[bytes]]
) -> None:
    running = Running(export_folder, tmp_path / "g", calibrated=False)
    try:
        a, b, *_ = next(iter(encoded.values()))
        found = running.client.post("/compare", json={"a": b64(a), "b": b64(b)}).json()
        assert (found["same"], found["far"]) == (None, None)
        running.client.post("/identities", json={"name": "x", "image": b64(a)})
        match = running.client.post("/search", json={"image": b64(b)}).json()["matches"][0]
        assert match["same"] is None
        refused = running.client.post("/compare", json={"a": b64(a), "b": b64(b), "threshold": "far=1e-4"})
        assert refused.status_code == 422
        assert "calibrate" in refused.json()["detail"]
    finally:
        running.close()


def test_life_of_an_identity(service: Running, encoded: dict[str, list[bytes]]) -> None:
    client, names = service.client, list(encoded)[:12]
    for name in names:
        answer = client.post("/identities", json={"name": name, "images": [b64(one) for one in encoded[name][:2]]})
        assert answer.status_code == 201, answer.text
        assert len(answer.json()["pictures"]) == 2
    again = client.post("/identities", files={"image": encoded["id00"][0]}, data={"name": "id00"})
    assert (again.status_code, "exists already" in again.json()["detail"]) == (409, True)
    found = client.post("/search", json={"image": b64(encoded["id05"][0]), "k": 3}).json()
    assert found["matches"][0]["identity"] == "id05"
    assert found["matches"][0]["score"] == pytest.approx(1.0, abs=1e-5)
    assert [match["same"] for match in found["matches"]] == [match["score"] > 0.5 for match in found["matches"]]
    more = client.post("/identities/id05/pictures", files={"image": encoded["id05"][2]})
    assert (more.status_code, len(more.json()["pictures"])) == (201, 3)
    shown = client.get(f"/pictures/{more.json()['pictures'][0]}")
    assert Image.open(io.BytesIO(shown.content)).size == (24, 24)
    renamed = client.patch("/identities/id05", json={"name": "Zoë/5", "metadata": {"age": 5}})
    assert (renamed.json()["name"], renamed.json()["metadata"]) == ("Zoë/5", {"age": 5})
    assert client.get("/identities/Zo%C3%AB%2F5").json() == renamed.json()
    first = client.get("/identities", params={"limit": 5}).json()
    second = client.get("/identities", params={"limit": 50, "after": first["next"]}).json()
    listed = [one["name"] for one in first["identities"] + second["identities"]]
    assert listed == sorted([*names[:5], *names[6:], "Zoë/5"])
    assert second["next"] is None
    assert client.delete("/identities/Zo%C3%AB%2F5").status_code == 204
    assert client.get("/identities/Zo%C3%AB%2F5").status_code == 404
    gone = client.post("/search", json={"image": b64(encoded["id05"][0]), "k": 100}).json()["matches"]
    assert "Zoë/5" not in [match["identity"] for match in gone]
    assert len(gone) == 11
    assert client.delete("/pictures/123456").status_code == 404


def test_a_gallery_that_was_taken_away_acknowledges_nothing(
    export_folder: Path, tmp_path: Path, encoded: dict[str, list[bytes]]
) -> None:
    gallery, elsewhere = tmp_path / "gallery", tmp_path / "elsewhere"
    running = Running(export_folder, gallery)
    try:
        picture = b64(encoded["id00"][0])
        assert running.client.post("/identities", json={"name": "a", "image": picture}).status_code == 201
        gallery.rename(elsewhere)  # as whoever puts a backup in its place does
        for answer in (
            running.client.post("/identities", json={"name": "b", "image": picture}),
            running.client.delete("/identities/a"),
            running.client.post("/search", json={"image": picture}),
            running.client.get("/ready"),
        ):
            assert (answer.status_code, "was taken away" in answer.json()["detail"]) == (503, True)
        elsewhere.rename(gallery)
        assert running.client.post("/identities", json={"name": "b", "image": picture}).status_code == 201
    finally:
        running.close()


def test_a_request_sent_twice_is_done_once(service: Running, encoded: dict[str, list[bytes]]) -> None:
    body = {"name": "twice", "images": [b64(one) for one in encoded["id20"][:2]]}
    with_key: dict[str, Any] = {"headers": {"Idempotency-Key": "k1"}}
    answers = [service.client.post("/identities", json=body, **with_key) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[0].json() == answers[1].json()
    other = service.client.post("/identities", json=body | {"name": "thrice"}, **with_key)
    assert (other.status_code, "another request" in other.json()["detail"]) == (422, True)
    service.client.delete("/identities/twice")
    gone = service.client.post("/identities", json=body, **with_key)
    assert (gone.status_code, "removed since" in gone.json()["detail"]) == (404, True)
    empty = service.client.post("/identities", json=body, headers={"Idempotency-Key": ""})
    assert (empty.status_code, "Idempotency-Key" in empty.json()["detail"]) == (422, True)


@pytest.mark.parametrize(
    ("path", "parts", "status", "word"),
    [
        ("/compare", [("a", "x"), ("a", "y"), ("b", "z")], 422, "a is given 2 times"),
        ("/compare", [("a", None), ("b", "z")], 422, "-F a=@FILE"),
        ("/compare", [("b", "x"), ("a", "y")], 200, "score"),
        ("/search", [("image", "x"), ("image", "y")], 422, "image is given 2 times"),
        ("/embed", [("image", None)], 422, "-F image=@FILE"),
        ("/embed", [("image", "x"), ("images", "y")], 422, "either image or images"),
        ("/embed", [("image", "x"), ("image", "y"), ("images", "z")], 200, "embeddings"),
        ("/identities", [("name", None), ("name", None), ("image", "x")], 422, "'name' is given twice"),
        ("/identities", [("name", None), ("image", None), ("image", "x")], 422, "-F image=@FILE"),
    ],
)
def test_a_form_means_one_thing(
    service: Running,
    encoded: dict[str, list[bytes]],
    path: str,
    parts: list[tuple[str, str | None]],
    status: int,
    word: str,
) -> None:
    pictures = itertools.cycle(several[0] for several in encoded.values())
    files = [(field, (file, next(pictures))) for field, file in parts]
    answer = service.client.post(path, files=files)
    assert (answer.status_code, word in answer.text) == (status, True), answer.text
    assert len(answer.json().get("embeddings", [1, 2, 3])) == 3


def test_a_form_that_ends_early_is_refused(service: Running, encoded: dict[str, list[bytes]]) -> None:
    picture = encoded["id20"][0]
    request = service.client.build_request(
        "POST", "/embed", files=[("image", ("a", picture)), ("image", ("b", picture))]
    )
    kind = {"Content-Type": request.headers["Content-Type"]}
    answer = service.client.post("/embed", content=request.read()[:-200], headers=kind)
    assert (answer.status_code, "before its last boundary" in answer.text) == (422, True), answer.text


def test_pictures_of_a_form_stay_in_memory(service: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise OSError("a picture was to be written to the disk")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", refused)
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    assert len(file.getvalue()) > 2 << 20
    assert service.client.post("/embed", files={"image": ("a", file.getvalue())}).status_code == 200


def test_a_packed_request_is_refused_as_such(service: Running) -> None:
    packed = gzip.compress(b'{"image": ""}')
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    answer = service.client.post("/embed", content=packed, headers=headers)
    assert (answer.status_code, "content-encoding 'gzip'" in answer.text) == (415, True)


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/model", "/identities", "/identities/x", "/page/"])
def test_head_is_answered_as_get_without_the_body(service: Running, path: str) -> None:
    got, asked = service.client.get(path), service.client.head(path)
    assert (asked.status_code, asked.content) == (got.status_code, b"")
    assert asked.headers["content-type"] == got.headers["content-type"]


def test_what_the_service_tells_of_itself(service: Running) -> None:
    assert service.client.get("/health").json() == {"status": "alive"}
    assert service.client.get("/ready").json()["status"] == "ready"
    model = service.client.get("/model").json()
    assert (model["width"], list(model["thresholds"])) == (16, ["far=1e-2"])
    figures = service.client.get("/metrics").text
    assert 'pfc_requests_total{method="GET",route="health",status="200"}' in figures
    assert "pfc_identities" in figures
    description = service.client.get("/openapi.json").json()
    assert description["paths"]["/embed"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "EmbedRequest" in description["components"]["schemas"]


def test_the_log_has_no_names_and_no_pictures(service: Running, encoded: dict[str, list[bytes]]) -> None:
    service.client.post("/identities", json={"name": "secretname", "image": b64(encoded["id30"][0])})
    service.client.get("/identities/secretname")
    service.client.delete("/identities/secretname")
    lines = [json.loads(line) for line in service.log.getvalue().splitlines()]
    assert {"route", "method", "status", "seconds"} <= lines[-1].keys()
    assert "secretname" not in service.log.getvalue()


# --- refusals ---------------------------------------------------------------------------------------------------------


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (width, height)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        (b"", 422, "empty"),
        (b"[1]", 422, "EmbedRequest"),
        (b"{", 422, "JSON"),
        (b"[" * 200_000, 422, "JSON"),
        (b'{"image": ' + b"[" * 100_000, 422, "JSON"),
        (b'{"image": "AAAA", "other": 1}', 422, "other"),
        (b'{"image": 5}', 422, "image"),
        (b'{"image": "%%%"}', 422, "base64"),
        (b'{"image": ""}', 422, "no JPEG"),
        (b'{"images": []}', 422, "images"),
        (b'{"image": "AAAA", "images": ["AAAA"]}', 422, "either"),
        (b'{"image": "\xff\xfe"}', 422, ""),
        (json.dumps({"image": b64(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")}).encode(), 422, "no JPEG"),
        (json.dumps({"image": b64(b"<svg xmlns='http://www.w3.org/2000/svg'/>")}).encode(), 422, "no JPEG"),
        (json.dumps({"image": b64(b"\xff\xd8\xff\xe0" + b"\0" * 50)}).encode(), 422, ""),
        (json.dumps({"image": b64(png(9000, 9000))}).encode(), 413, "pixels"),
    ],
)
def test_bad_requests_get_a_sentence(service: Running, body: bytes, status: int, word: str) -> None:
    answer = service.client.post("/embed", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    assert word in answer.json()["detail"]
    assert "\n" not in answer.json()["detail"]


def test_limits_come_before_decoding(export_folder: Path, encoded: dict[str, list[bytes]], monkeypatch: Any) -> None:
    running = Running(export_folder, None, body=200_000, image=20_000, pictures=3, pixels=10_000, body_seconds=2.0)
    decoded: list[int] = []
    prepare = running.recogniser.prepare
    monkeypatch.setattr(running.recogniser, "prepare", lambda data: decoded.append(1) or prepare(data))  # type: ignore[func-returns-value]
    good = next(iter(encoded.values()))[0]
    try:
        client = running.client
        for answer, status in (
            (client.post("/embed", content=b"x" * 200_001), 413),
            (client.post("/embed", content=iter([b"x" * 70_000] * 3)), 413),
            (client.post("/embed", json={"image": b64(b"\xff" * 20_001)}), 413),
            (client.post("/embed", files={"image": b"\xff" * 20_001}), 413),
            (client.post("/embed", json={"image": b64(png(101, 100))}), 413),
            (client.post("/embed", json={"images": [b64(good)] * 4}), 413),
            (client.post("/embed", files=[("images", good)] * 4), 413),
            (client.post("/embed", content=b"x", headers={"Content-Type": "text/plain"}), 415),
            (client.post("/search", json={"image": b64(good)}), 404),
            (client.post("/nothing", json={}), 404),
            (client.put("/embed", json={}), 405),
        ):
            assert answer.status_code == status, answer.text
            assert answer.json()["detail"]
        assert decoded == []
        assert client.post("/embed", json={"image": b64(good)}).status_code == 200
        with socket.create_connection(running.address) as slow:
            slow.sendall(b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            started = time.monotonic()
            assert slow.recv(100).startswith(b"HTTP/1.1 408")
            assert time.monotonic() - started < 25
    finally:
        running.close()


@pytest.mark.parametrize(
    ("path", "taken"),
    [
        ("/embed", "POST"),
        ("/health", "GET, HEAD"),
        ("/page/app.js", "GET, HEAD"),
        ("/identities", "GET, HEAD, POST"),
        ("/identities/anna", "DELETE, GET, HEAD, PATCH"),
        ("/identities/anna/pictures", "DELETE, GET, HEAD, PATCH, POST"),
        ("/pictures/1", "DELETE, GET, HEAD"),
    ],
)
def test_another_method_is_told_those_of_the_path(service: Running, path: str, taken: str) -> None:
    answer = service.client.put(path, json={})
    assert (answer.status_code, answer.headers["allow"]) == (405, taken)
    assert taken in answer.json()["detail"]


@pytest.mark.parametrize(("limits", "status"), [({"queue": 2}, 503), ({"per_client": 2}, 429)])
def test_busy_is_said_with_a_time(
    export_folder: Path, encoded: dict[str, list[bytes]], monkeypatch: Any, limits: dict[str, Any], status: int
) -> None:
    running = Running(export_folder, None, **limits)
    free = threading.Event()
    embed = running.state.batcher._embed
    monkeypatch.setattr(running.state.batcher, "_embed", lambda pixels: (free.wait(120), embed(pixels))[1])
    body = {"image": b64(next(iter(encoded.values()))[0])}
    answers: list[int] = []

    def ask() -> None:
        answers.append(httpx.post(running.url + "/embed", json=body, timeout=120, trust_env=False).status_code)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    try:
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 60
        while running.state.batcher.pending < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        refused = running.client.post("/embed", json=body)
        assert (refused.status_code, refused.headers["retry-after"]) == (status, "1")
        free.set()
        for thread in threads:
            thread.join()
        assert answers == [200, 200]
    finally:
        free.set()
        running.close()


def test_keys_and_scopes(export_folder: Path, tmp_path: Path, encoded: dict[str, list[bytes]]) -> None:
    keys, reader = Keys().with_new("reader", ["read"])
    keys, writer = keys.with_new("writer", ["read", "enrol"])
    keys, owner = keys.with_new("owner", ["admin", "enrol", "read"])
    keys.write(tmp_path / "keys.json")
    assert (tmp_path / "keys.json").stat().st_mode & 0o077 == 0
    assert all(secret not in (tmp_path / "keys.json").read_text() for secret in (reader, writer, owner))
    running = Running(export_folder, tmp_path / "g", keys=Keys.read(tmp_path / "keys.json"))
    picture = b64(next(iter(encoded.values()))[0])

    def ask(method: str, path: str, secret: str | None, body: Any = None) -> int:
        headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
        return running.client.request(method, path, json=body, headers=headers).status_code

    enrol = {"name": "anna", "image": picture}
    try:
        for secret in (None, "wrong", reader[:-1] + "x", "x" + reader[1:], reader + "x"):
            assert ask("POST", "/embed", secret, {"image": picture}) == 401
        assert ask("POST", "/embed", reader, {"image": picture}) == 200
        assert ask("GET", "/metrics", None) == 401
        assert ask("GET", "/health", None) == 200
        assert ask("GET", "/page/", None) == 200
        assert ask("POST", "/identities", reader, enrol) == 403
        assert ask("POST", "/identities", writer, enrol) == 201
        assert ask("DELETE", "/identities/anna", writer) == 403
        assert ask("PATCH", "/identities/anna", writer, {"name": "b"}) == 403
        assert ask("DELETE", "/identities/anna", owner) == 204
        running.keys = running.keys.without("owner")
        assert ask("GET", "/identities", owner) == 401
    finally:
        running.close()


def test_the_last_key_that_is_removed_opens_no_door(
    export_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "keys.json"
    keys, secret = Keys().with_new("door", ["read"])
    keys.write(path)
    followed = KeyFile(path)
    running = Running(export_folder, tmp_path / "g", keys=followed())
    good = {"Authorization": f"Bearer {secret}"}
    try:
        assert running.client.get("/model", headers=good).status_code == 200
        assert main([str(export_folder), "--keys", str(path), "--remove-key", "door"]) == 0
        assert "No key is left" in capsys.readouterr().err
        running.keys = followed()
        assert [running.client.get("/model", headers=headers).status_code for headers in (good, {})] == [401, 401]
        assert running.client.get("/health").status_code == 200
        path.unlink()
        assert (len(followed()), followed().needed) == (0, True)
        keys.write(path)
        running.keys = followed()
        assert running.client.get("/model", headers=good).status_code == 200
    finally:
        running.close()
    assert not KeyFile(tmp_path / "none.json")().needed


def test_a_service_that_only_reads(export_folder: Path, tmp_path: Path, encoded: dict[str, list[bytes]]) -> None:
    picture = b64(encoded["id20"][0])
    running = Running(export_folder, tmp_path / "g")
    try:
        assert running.client.post("/identities", json={"name": "anna", "image": picture}).status_code == 201
        running.state.read_only = True
        for method, path, body in (
            ("POST", "/identities", {"name": "b", "image": picture}),
            ("POST", "/identities/anna/pictures", {"image": picture}),
            ("PATCH", "/identities/anna", {"name": "b"}),
            ("DELETE", "/identities/anna", None),
            ("DELETE", "/pictures/1", None),
        ):
            answer = running.client.request(method, path, json=body)
            assert (answer.status_code, "--read-only" in answer.json()["detail"]) == (403, True), path
        found = running.client.post("/search", json={"image": picture}).json()["matches"]
        assert [one["identity"] for one in found] == ["anna"]
        assert running.client.get("/model").json()["read_only"] is True
    finally:
        running.close()


@pytest.mark.parametrize("file", ["service.lock", "service.holder"])
def test_a_gallery_that_cannot_be_written_says_how_it_is_served(tmp_path: Path, file: str) -> None:
    (tmp_path / file).mkdir()
    with pytest.raises(GalleryError, match="--read-only serves it as it is"), service_lock(str(tmp_path)):
        pass


def test_keys_that_cannot_be_found_are_not_no_keys(
    export_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name with a slip, a link whose disk is not there: each served everybody."""
    (tmp_path / "link.json").symlink_to(tmp_path / "not mounted" / "keys.json")
    (tmp_path / "empty.json").write_text("{}")
    for name, said in (
        ("typo.json", "no such file; make a key with --make-key NAME first"),
        ("link.json", "cannot be read: No such file or directory"),
        ("empty.json", "it has no 'version'"),
    ):
        assert main([str(export_folder), "--port", "0", "--keys", str(tmp_path / name)]) == 1
        error = capsys.readouterr().err
        assert (said in error, str(tmp_path / name) in error, error.count("\n")) == (True, True, 1), error

    def denied(self: Path, **words: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "lstat", denied)  # in a folder of somebody else
    with pytest.raises(KeyFileError, match="cannot be read: Permission denied"):
        Keys.read(tmp_path / "empty.json")


def test_a_file_of_keys(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="it is a folder; mend that, or name another"):  # nor is it to be removed
        Keys.read(tmp_path)
    with pytest.raises(KeyFileError, match="scope 'root'"):
        Keys().with_new("a", ["root"])
    keys, _ = Keys().with_new("a", ["read"])
    with pytest.raises(KeyFileError, match="exists already"):
        keys.with_new("a", ["read"])
    with pytest.raises(KeyFileError, match="no key 'b'"):
        keys.without("b")
    for bad in ("", "[]", '{"version": 2}', "[" * 100_000, '{"version": 1, "keys": [{"name": 1}]}'):
        (tmp_path / "keys.json").write_text(bad)
        with pytest.raises(KeyFileError, match="no file of keys"):
            Keys.read(tmp_path / "keys.json")


def test_the_page_takes_nothing_from_elsewhere(service: Running) -> None:
    answer = service.client.get("/page/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    for name in ("", "app.js", "style.css"):
        text = service.client.get(f"/page/{name}").text
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in text
    assert service.client.get("/page/keys.json").status_code == 404
    assert service.client.get("/page/../keys.json").status_code == 404


# --- the batcher ------------------------------------------------------------------------------------------------------


def test_what_waits_is_embedded_together() -> None:
    sizes: list[int] = []
    busy = threading.Event()

    def embed(pixels: np.ndarray) -> np.ndarray:
        sizes.append(len(pixels))
        busy.wait(60)
        return pixels[:, 0, 0, :].astype(np.float32)

    async def work() -> list[np.ndarray]:
        batcher = Batcher(embed, largest=8, waiting=30)
        first = asyncio.create_task(batcher.embed([np.full((2, 2, 3), 0, np.uint8)]))
        while not sizes:
            await asyncio.sleep(0.01)
        rest = [asyncio.create_task(batcher.embed([np.full((2, 2, 3), i, np.uint8)] * 2)) for i in range(1, 10)]
        await asyncio.sleep(0.05)
        with pytest.raises(QueueFullError):
            await batcher.embed([np.zeros((2, 2, 3), np.uint8)] * 12)
        busy.set()
        rows = await asyncio.gather(first, *rest)
        batcher.close()
        assert batcher.pending == 0
        return rows

    rows = asyncio.run(work())
    assert sizes == [1, 8, 8, 2]
    assert [row[0, 0] for row in rows] == list(range(10))


def test_a_batch_that_fails_fails_its_requests_only() -> None:
    def embed(pixels: np.ndarray) -> np.ndarray:
        if pixels.max() > 9:
            raise ValueError("too bright")
        return pixels[:, 0, 0, :].astype(np.float32)

    async def work() -> None:
        batcher = Batcher(embed, largest=1)
        bad = asyncio.create_task(batcher.embed([np.full((1, 1, 3), 99, np.uint8)]))
        good = asyncio.create_task(batcher.embed([np.full((1, 1, 3), 1, np.uint8)]))
        with pytest.raises(ValueError, match="too bright"):
            await bad
        assert (await good)[0, 0] == 1
        batcher.close()

    asyncio.run(work())


# --- the command ------------------------------------------------------------------------------------------------------


def run(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return console.run(f"lightning_pfc.commands.{words[0]}", *words[1:], **options)


@contextlib.contextmanager
def _ended(process: subprocess.Popen[str]) -> Iterator[None]:
    """A process that a failure leaves behind would be waited for, for ever."""
    try:
        yield
    finally:
        process.kill()


@pytest.mark.timeout(900)  # eight commands and a service, each with its imports: minutes beside other work
def test_from_a_folder_to_answers_and_a_clean_end(
    export_folder: Path, pictures: Path, tmp_path: Path, encoded: dict[str, list[bytes]]
) -> None:
    gallery = tmp_path / "g"
    (tmp_path / "some").mkdir()
    for name in ("id01", "id02"):
        (tmp_path / "some" / name).symlink_to(pictures / name)
    words = ["gallery", "build", str(gallery), str(tmp_path / "some"), "--model", str(export_folder)]
    refused = run(*words)
    assert (refused.returncode, f"allow={pictures}" in refused.stderr) == (1, True)  # links lead out of the folder
    built = run(*words, f"--allow={pictures}")
    assert built.returncode == 0, built.stderr
    assert "8 pictures enrolled; the gallery has 8 of 2 identities" in built.stdout
    program = "import sys; from lightning_pfc.commands.serve import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", program, str(export_folder), "--gallery", str(gallery), "--port", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process, _ended(process):
        first = json.loads(process.stderr.readline())
        url = first["address"]
        second = run("serve", str(export_folder), "--gallery", str(gallery), "--port", "0")
        assert (second.returncode, "served already by process" in second.stderr) == (1, True)
        taken = run("serve", str(export_folder), "--port", url.rpartition(":")[2])
        assert (taken.returncode, "port=" in taken.stderr, taken.stderr.count("\n")) == (1, True, 1)
        found = httpx.post(f"{url}/search", files={"image": encoded["id02"][1]}, trust_env=False, timeout=120).json()
        assert found["matches"][0]["identity"] == "id02"
        key = run("serve", str(export_folder), "--gallery", str(gallery), "--make-key", "k", "--scopes", "read,enrol")
        secret = key.stdout.strip()
        refused = httpx.get(f"{url}/identities", trust_env=False, timeout=120)  # type: ignore[assignment]
        assert refused.status_code == 401  # the service that runs knows of the key
        headers = {"Authorization": f"Bearer {secret}"}
        assert httpx.get(f"{url}/identities", headers=headers, trust_env=False, timeout=120).status_code == 200
        process.terminate()
        assert process.wait(60) == 0
    searched = run("gallery", "search", str(gallery), str(pictures / "id01" / "p0.png"), "--k", "1")
    assert searched.returncode == 0, searched.stderr
    assert "id01" in searched.stdout


def test_listening_to_others_needs_keys(export_folder: Path, tmp_path: Path) -> None:
    open_door = run("serve", str(export_folder), "--host", "0.0.0.0", "--port", "0")
    assert (open_door.returncode, "--make-key" in open_door.stderr, open_door.stderr.count("\n")) == (1, True, 1)


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_an_address_of_ipv6_is_one_that_clients_take(host: str) -> None:
    assert is_loopback(host)
    try:
        sock = listening_socket(host, 0)
    except ListenError:
        pytest.skip("this machine has no IPv6")
    with sock:
        parsed = urllib.parse.urlsplit(address_of(sock, "http"))
        with socket.create_connection((parsed.hostname, parsed.port), timeout=60):
            pass


def test_a_host_that_is_none_is_named() -> None:
    with pytest.raises(ListenError, match=r"192\.0\.2\.1: .*; choose another with --host"):  # of documentation alone
        listening_socket("192.0.2.1", 0)
    with pytest.raises(ListenError, match="--host 'no such host'"):
        listening_socket("no such host", 0)


def test_serve_is_importable_for_others() -> None:
    assert callable(serve)


# --- photos -----------------------------------------------------------------------------------------------------------


def test_photos_of_one_face_are_taken(export_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LD_LIBRARY_PATH", "QT_QPA_FONTDIR", "QT_QPA_PLATFORM_PLUGIN_PATH"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # OpenCV sets some
    pytest.importorskip("cv2", reason="needs OpenCV, of the extra data")
    detector = write_yunet(tmp_path / "yunet.onnx")
    running = Running(export_folder, tmp_path / "g", photos=detector)
    one, two, none = (plant((300, 400), *cells) for cells in ([(80, 120)], [(80, 120), (240, 120)], []))
    try:
        assert running.client.get("/model").json()["photos"] is True
        made = running.client.post("/identities", json={"name": "x", "image": b64(encoded_png(one))})
        assert made.status_code == 201
        found = running.client.post("/embed", json={"image": b64(encoded_png(one))}).json()["embedding"]
        np.testing.assert_allclose(found, running.recogniser.embed(one)[0], atol=1e-4)
        for photo, word in ((two, "2 faces, at most 1"), (none, "no face")):
            refused = running.client.post("/search", json={"image": b64(encoded_png(photo))})
            assert (refused.status_code, word in refused.json()["detail"]) == (422, True)
        running.state.limits = Limits(faces=2)
        assert running.client.post("/search", json={"image": b64(encoded_png(two))}).status_code == 200
    finally:
        running.close()


def encoded_png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def test_a_detector_needs_photos(export_folder: Path, tmp_path: Path) -> None:
    for words in (["serve", str(export_folder)], ["gallery", "search", str(tmp_path), "x.jpg"]):
        refused = run(*words, "--detector", "yunet.onnx")
        assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    lacks = run("serve", str(export_folder), "--photos")
    assert (lacks.returncode, "--detector" in lacks.stderr, lacks.stderr.count("\n")) == (1, True, 1)
