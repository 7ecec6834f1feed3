"""What the pages say about galleries and the service, typed as written."""

from __future__ import annotations

import http.server
import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("faiss", reason="needs the extra serve")

import httpx

from lightning_pfc.commands import gallery, serve
from recipes.deploy.client import Service, ServiceError
from tests.serving import b64

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/export.md", "docs/gallery.md", "docs/serving.md")
FILES = "anna.jpg anna1.jpg anna2.jpg someone.jpg someone.png new.jpg a.jpg b.jpg a.png b.png".split()  # noqa: SIM905


def lines(page: str, command: str) -> list[str]:
    """The lines of a page, or of a command's help, that call a command; without their comments."""
    text = {"serve": serve._EPILOG, "gallery": gallery._EPILOG}.get(page) or (ROOT / page).read_text()
    found = re.findall(rf"^(?:\$|  ) ?({command} .*)$", text, re.MULTILINE)
    return [part.strip() for line in found for part in line.partition("  #")[0].split(";")]


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.fixture
def home(export_folder: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the names that the pages use: exports, photos, single pictures."""
    for run in ("X", "Y", "glyphs"):
        shutil.copytree(export_folder, tmp_path / "runs" / run / "export")
    about = json.loads((tmp_path / "runs/Y/export/model.json").read_text())
    (tmp_path / "runs/Y/export/model.json").write_text(json.dumps(about | {"weights": "b" * 64}))  # another model
    people = [sorted(folder.iterdir()) for folder in sorted(pictures.iterdir())]
    for folder, part in (("photos", slice(0, 2)), ("more-photos", slice(2, 4))):
        for name, files in zip(("anna", "bert"), people, strict=False):
            (tmp_path / folder / name).mkdir(parents=True)
            for file in files[part]:
                Image.open(file).save(tmp_path / folder / name / f"{file.stem}.jpg", quality=95)
    for name, file in zip(FILES, (file for files in people[2:] for file in files), strict=False):
        Image.open(file).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", ["README.md", "docs/gallery.md", "gallery"])
def test_commands_of_galleries(page: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = lines(page, "pfc-gallery")
    assert len(typed) >= 2
    for line in typed:
        if " reembed " in line:  # with the folder that all pictures of the gallery come from
            shutil.rmtree("staff")
            assert gallery.main(shlex.split(typed[0])[1:]) == 0
        status = gallery.main(shlex.split(line)[1:])
        assert status == 0, f"{line}: {capsys.readouterr().err}"
    if page == "docs/gallery.md":
        assert "anna" not in [line.split("\t")[0] for line in _output(capsys, "list", "staff")]  # removed last


def _output(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    capsys.readouterr()
    assert gallery.main(words) == 0
    return capsys.readouterr().out.splitlines()


def test_lines_of_python(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gallery.main(["build", "staff", "more-photos", "--model", "runs/X/export"]) == 0
    assert gallery.main(["remove", "staff", "anna"]) == 0
    known = {
        "image_bytes": (home / "a.jpg").read_bytes(),
        "pil_image": Image.open(home / "b.jpg"),
        "array": np.zeros((30, 40, 3), np.uint8),
    }
    for page, word in (("README.md", "drawn("), ("docs/export.md", "Recogniser.load"), ("docs/gallery.md", "Gallery")):
        code = next(block for block in blocks(page) if word in block)
        exec(compile(code, page, "exec"), dict(known))
    assert re.search(r"^(anna|bert) ", capsys.readouterr().out, re.MULTILINE)


def test_the_client_meets_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """One in the environment is not asked for a service on this machine; what it says itself is no JSON."""

    class Proxy(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(502)

        def log_message(self, format: str, *words: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        try:
            with pytest.raises(ServiceError, match="502: Bad Gateway"):
                Service("http://service.invalid", attempts=1).identities()
            with socket.create_server(("127.0.0.1", 0)) as unused:
                port = unused.getsockname()[1]
            with pytest.raises(ServiceError, match=f"{port} does not answer"):
                Service(f"http://127.0.0.1:{port}", attempts=1).identities()
        finally:
            server.shutdown()
            thread.join()


# --- a service of its own ---------------------------------------------------------------------------------------------

SERVE = """
import sys
from lightning_pfc.commands.serve import main
status = main()
from lightning_pfc.faces import FaceCutter, open_detector  # for photos
print([name for name in ("torch", "lightning", "timm", "hydra", "onnx") if name in sys.modules])
sys.exit(status)
"""


class Served:
    """``pfc-serve`` as its page starts it, on a free port."""

    def __init__(self, home: Path) -> None:
        assert gallery.main(["build", "staff", "photos", "--model", "runs/X/export"]) == 0
        words = shlex.split(lines("docs/serving.md", "pfc-serve")[0])[1:]
        assert words == ["runs/X/export", "--gallery", "staff"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, *words, "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=home,
        )
        assert self.process.stderr is not None
        self.url = json.loads(self.process.stderr.readline())["address"]

    def end(self) -> str:
        """What it said at its end."""
        self.process.send_signal(signal.SIGTERM)
        out, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 0
        return out


@pytest.fixture
def served(home: Path) -> Iterator[Served]:
    found = Served(home)
    yield found
    if found.process.poll() is None:
        found.process.kill()
        found.process.communicate()


def test_requests_are_answered_as_the_page_says_and_without_torch(served: Served, home: Path) -> None:
    _curl(served, home)
    _table(served, home)
    assert served.end().strip() == "[]"  # none of the large packages that only training needs


def _curl(served: Served, home: Path) -> None:
    """Every curl line of the pages and of the help, in the order of each."""
    if shutil.which("curl") is None:
        return  # the requests of the table are sent all the same
    assert gallery.main(["remove", "staff", "anna"]) == 0  # whom the page enrols
    answers: dict[str, Any] = {}
    for page in (*PAGES, "serve"):
        for line in lines(page, "curl"):
            words = shlex.split(line.replace("http://127.0.0.1:8000", served.url))
            done = subprocess.run(
                [*words, "--noproxy", "*", "-w", "\n%{http_code}"], cwd=home, capture_output=True, text=True, timeout=60
            )
            body, _, status = done.stdout.rpartition("\n")
            assert status in ("200", "201", "204"), f"{line}: {done.stdout}{done.stderr}"
            answers[line] = json.loads(body or "null")
    assert len(answers) >= 6
    assert {tuple(answer) for answer in answers.values() if answer} == {
        ("embedding",),
        ("score", "same", "far", "interval", "threshold"),
        ("matches", "threshold", "rate"),
        ("name", "pictures", "metadata"),
    }


def _table(served: Served, home: Path) -> None:
    """Every row of the table of requests, with the keys that it promises, and with no other."""
    text = (ROOT / "docs/serving.md").read_text()
    table = text.partition("| request |")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    image, other = (b64((home / name).read_bytes()) for name in ("anna1.jpg", "someone.jpg"))
    values = {"image": image, "images": [image, other], "a": image, "b": other, "name": "carl", "k": 3, "metadata": {}}
    done: list[str] = []
    known: tuple[str, ...] = ()
    who = "bert"
    with httpx.Client(base_url=served.url, timeout=60, trust_env=False) as client:
        for request, body, promised in rows:
            known = tuple(re.findall(r"(?:GET|POST|PATCH|DELETE)? ?/[^`, ]*", request)) or known
            keys = [key for key in re.findall(r'"(\w+)"', body) if key in values]
            if keys.count("image") and keys.count("images"):  # one or the other
                keys.remove("image")
            verb = ""
            for one in known:
                verb = one.split()[0] if " /" in one else verb
                path = one.split()[-1].replace("?after=&limit=", "?after=&limit=2")
                path = path.replace("/pictures/N", f"/pictures/{_number(client)}").replace("NAME", who)
                if verb == "PATCH":
                    values["name"] = who = "berta"
                sent = {key: values[key] for key in keys} if verb in ("POST", "PATCH") else None
                answer = client.request(verb, path, json=sent)
                assert answer.status_code == int(promised[:3] if promised[:3].isdigit() else 200), (one, answer.text)
                assert _agree(answer, promised), (one, answer.text)
                done.append(one)
    assert len(done) >= 16


def _number(client: httpx.Client) -> int:
    """Of a picture that there is."""
    return client.get("/identities").json()["identities"][0]["pictures"][-1]


def _agree(answer: httpx.Response, promised: str) -> bool:
    names = set(re.findall(r'"(\w+)"', promised))
    return not names or names == set(re.findall(r'"(\w+)":', answer.text))


# --- words that are refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--port", "70000"], "--port 70000 must be 1 to 65535"),
        (["--port", "-1"], "--port -1 must be 1 to 65535"),
        (["--grace", "-1"], "--grace -1.0 must be seconds"),
        (["--grace", "nan"], "--grace nan must be seconds"),
        (["--tls", "no.pem", "no.key"], "no such file: no.pem"),
        (["--tls", "a.jpg", "b.jpg"], "a.jpg and b.jpg are no certificate and its key"),
        (["--make-key", " ", "--keys", "k.json"], "names no key"),
        (["--engine", "tpu"], "engine='tpu' does not exist; there are onnxruntime, openvino and torch"),
        (["--photos"], "has no face detector"),
    ],
)
def test_words_of_a_service(words: list[str], said: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert serve.main(["runs/X/export", *words]) == 1
    error = capsys.readouterr().err
    assert (said in error, error.count("\n")) == (True, 1), error
    assert not (home / "k.json").exists()


def test_words_of_a_gallery(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "broken/anna").mkdir(parents=True)
    (home / "broken/anna/1.jpg").write_bytes(b"none")
    build = ["build", "staff", "photos", "--model", "runs/X/export"]
    for words, said in (
        (
            ["build", "staff", "broken", "--model", "runs/X/export"],
            "no gallery was made. The first one: broken/anna/1.jpg",
        ),
        (build, ""),
        (["remove", "staff", "--picture", str(1 << 70)], "`pfc-gallery list`"),
        (["remove", "staff", "--picture", "-1"], "`pfc-gallery list`"),
        (["export", "staff", "photos"], "photos holds other files"),
    ):
        assert gallery.main(words) == (1 if said else 0)
        error = capsys.readouterr().err
        assert not said or (said in error and error.count("\n") == 1), error
    assert sorted(path.name for path in (home / "photos").iterdir()) == ["anna", "bert"]
