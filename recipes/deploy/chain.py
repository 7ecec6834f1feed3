"""From nothing to a service that answers: train, calibrate, export, serve, enrol, search; with the time of each.

python recipes/deploy/chain.py                     # trains pfc-train's default run first
python recipes/deploy/chain.py --run runs/X        # from a run that there is
python recipes/deploy/chain.py --run runs/X --folder photos/

The test characters, which no run has seen, are enrolled as one design draws them and searched as the other does; of a
folder with one folder of pictures per identity, the first picture is enrolled and the second searched. What the service
answers stands beside what numpy finds with the embeddings of the trained module itself. How often it took strangers for
somebody stands beside what calibration promised: in galleries of some of the identities, searched with others, and over
all pairs that a search of all of them compares. Calibration takes pictures of all designs together; strangers drawn as
those in the gallery are come nearer to them than strangers of another design, so both are searched for, each apart.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "service"))

from client import Service
from starting import command, service

if TYPE_CHECKING:
    from lightning_pfc.calibration import Threshold
    from lightning_pfc.deploy import Recogniser


class Pictures(NamedTuple):
    """Encoded pictures by identity: one to enrol, one to search with."""

    names: list[str]
    enrolled: list[bytes]
    searched: list[bytes]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chain; prints what was found as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a trained run (default: one is trained)")
    parser.add_argument("--folder", type=Path, help="folder of folders of pictures (default: the test characters)")
    parser.add_argument("--far", default="1e-4", help="share of strangers that may pass in a comparison (1e-4)")
    parser.add_argument("--fpir", default="0.05", help="share of strangers who may be found in a gallery (0.05)")
    parser.add_argument("--gallery", type=int, default=500, help="identities in that gallery (500)")
    parser.add_argument("--calibrated", action="store_true", help="the run has such thresholds already")
    options = parser.parse_args(arguments)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        run = options.run or work / "run"
        if options.run is None:
            found["train, s"] = _timed(lambda: _must("train", f"output_dir={run}"))
        if not options.calibrated:
            words = [f"far={options.far}", f"fpir={options.fpir}", f"gallery={options.gallery}"]
            found["calibrate, s"] = _timed(lambda: _must("eval", f"run={run}", *(f"calibrate.{one}" for one in words)))
        found["export, s"] = _timed(lambda: _must("export", run, "--out", work / "export"))
        pictures = _characters(run) if options.folder is None else _people(options.folder)
        found |= {"identities": len(pictures.names)} | _serve(work, pictures)
    print(json.dumps(found, indent=2))
    return 0


def _timed(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return round(time.perf_counter() - begun, 1)


def _must(name: str, *words: str | Path) -> None:
    if command(name, *words, stdout=subprocess.DEVNULL).wait():
        raise SystemExit(f"pfc-{name} failed")


# --- pictures ---------------------------------------------------------------------------------------------------------


def _characters(run: Path) -> Pictures:
    """The run's test characters as two designs draw them."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from lightning_pfc.data.glyphs.store import open_store

    source = instantiate(OmegaConf.load(run / "config.yaml").data.source)
    store = open_store(source.fonts(), size=source.size, folder=source.cache_dir)
    tested = np.unique(source.open().test["test"].identity.numpy())
    found = Pictures([], [], [])
    first, second = (np.flatnonzero(store.designs == design) for design in range(2))
    rows = [dict(zip(store.codepoints[part].tolist(), part.tolist(), strict=True)) for part in (first, second)]
    for character in tested.tolist():
        if character in rows[0] and character in rows[1]:
            found.names.append(chr(character))
            found.enrolled.append(_png(store.images[rows[0][character]]))
            found.searched.append(_png(store.images[rows[1][character]]))
    return found


def _people(folder: Path) -> Pictures:
    found = Pictures([], [], [])
    for one in sorted(folder.iterdir()):
        files = sorted(path for path in one.glob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        if len(files) >= 2:
            found.names.append(one.name)
            found.enrolled.append(files[0].read_bytes())
            found.searched.append(files[1].read_bytes())
    return found


def _png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


# --- the service, and the module beside it ----------------------------------------------------------------------------


def _serve(work: Path, pictures: Pictures) -> dict[str, Any]:
    from lightning_pfc.deploy import Recogniser

    recogniser = Recogniser.load(work / "export", "torch")
    (work / "photos" / "nobody").mkdir(parents=True)
    (work / "photos" / "nobody" / "1.png").write_bytes(_png(np.zeros((32, 32), np.uint8)))
    _must("gallery", "build", work / "gallery", work / "photos", "--model", work / "export")
    _must("gallery", "remove", work / "gallery", "nobody")
    process, host = service(work / "log", work / "export", "--gallery", work / "gallery")
    try:
        with ThreadPoolExecutor(8) as pool:
            client = Client(Service(f"http://{host}"), pool)
            strangers = _strangers(client, pictures, recogniser.threshold(kind="identification"))
            found = _everybody(client, pictures, recogniser.threshold())
            rows = client.embed(pictures.searched[:200])
    finally:
        process.terminate()
        status = process.wait(60)
    wanted, names = _of_module(recogniser, pictures)
    own = wanted[:200] / np.linalg.norm(wanted[:200], axis=1, keepdims=True)
    cosines = (rows / np.linalg.norm(rows, axis=1, keepdims=True) * own).sum(1)
    return {
        **strangers,
        **found,
        "ended with": status,
        "embeddings, 1 - least cosine with the module's": float(1 - cosines.min()),
        "module": _figures(names, pictures.names),
    }


class Client(NamedTuple):
    """Requests of eight clients at a time."""

    service: Service
    pool: ThreadPoolExecutor

    def enrol(self, names: list[str], pictures: list[bytes]) -> None:
        """One identity for each picture."""
        list(self.pool.map(lambda name, one: self.service.enrol(name, [one]), names, pictures))

    def delete(self, names: list[str]) -> None:
        """Forget identities."""
        list(self.pool.map(self.service.delete, names))

    def search(self, pictures: list[bytes], k: int, threshold: str) -> list[list[dict[str, Any]]]:
        """The matches of each picture."""
        return list(self.pool.map(lambda one: self.service.search(one, k, threshold), pictures))

    def embed(self, pictures: list[bytes]) -> np.ndarray:
        """(N, D)."""
        return np.array(list(self.pool.map(lambda one: self.service.embed(one)[0], pictures)))


def _strangers(client: Client, pictures: Pictures, promised: Threshold | None) -> dict[str, Any]:
    """Galleries of some identities, searched by themselves and by others who are not in them."""
    if promised is None or promised.gallery is None:
        return {}
    size = promised.gallery
    order = np.random.default_rng(0).permutation(len(pictures.names))
    alarms: dict[str, list[bool]] = {"searched as members are enrolled": [], "searched with the other picture": []}
    known: list[bool] = []
    for first in range(0, len(order) - 2 * size + 1, size):
        members, others = order[first : first + size].tolist(), order[first + size : first + 2 * size].tolist()
        names = [pictures.names[i] for i in members]
        client.enrol(names, [pictures.enrolled[i] for i in members])
        for found, of in zip(alarms.values(), (pictures.enrolled, pictures.searched), strict=True):
            found += [best[0]["same"] for best in client.search([of[i] for i in others], 1, promised.name)]
        own = client.search([pictures.searched[i] for i in members], 1, promised.name)
        known += [best[0]["same"] and best[0]["identity"] == name for name, best in zip(names, own, strict=True)]
        client.delete(names)
    return {
        f"strangers in galleries of {size}": {
            "promised": [promised.name, promised.rate, promised.interval],
            "searches of each kind": len(known),
            "taken for somebody": {kind: round(float(np.mean(found)), 5) for kind, found in alarms.items()},
            "members found": round(float(np.mean(known)), 5),
        }
    }


def _everybody(client: Client, pictures: Pictures, promised: Threshold | None) -> dict[str, Any]:
    """All enrolled, all searched: times, who comes first, and which share of all pairs of two identities passes."""
    if promised is None:
        raise SystemExit("the export has no threshold; leave --calibrated out")
    count, most = len(pictures.names), min(100, len(pictures.names))
    enrol = _timed(lambda: client.enrol(pictures.names, pictures.enrolled))
    begun = time.perf_counter()
    answers = client.search(pictures.searched, most, promised.name)
    search = time.perf_counter() - begun
    wrong = [
        sum(one["same"] and one["identity"] != name for one in answer)
        for name, answer in zip(pictures.names, answers, strict=True)
    ]
    return {
        "enrol, pictures a second": round(count / max(enrol, 1e-9), 1),
        f"search of {most}, a second": round(count / search, 1),
        "pairs of two identities": {
            "promised": [promised.name, promised.rate, promised.interval],
            "pairs": count * (count - 1),
            "accepted": sum(wrong) / (count * (count - 1)),
            "searches with more than were answered": sum(answer[-1]["same"] for answer in answers),
        },
        "service": _figures([(answer[0]["identity"], answer[0]["same"]) for answer in answers], pictures.names),
    }


def _of_module(recogniser: Recogniser, pictures: Pictures) -> tuple[np.ndarray, list[tuple[str, bool | None]]]:
    """Embeddings of the searched pictures by the trained module; the nearest names, and which are accepted."""
    rows = [recogniser.embed(part) for part in (pictures.enrolled, pictures.searched)]
    first, second = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in rows)
    scores = second @ first.T
    best = scores.argmax(1)
    threshold = recogniser.threshold()
    accepted = [None if threshold is None else threshold.accepts(scores[i, j]) for i, j in enumerate(best.tolist())]
    return rows[1], [(pictures.names[j], same) for j, same in zip(best.tolist(), accepted, strict=True)]


def _figures(found: list[tuple[str, bool | None]], names: list[str]) -> dict[str, float]:
    """Shares of the searches: the right identity first; accepted and right; accepted and wrong."""
    right = np.array([name == wanted for (name, _), wanted in zip(found, names, strict=True)])
    accepted = np.array([bool(same) for _, same in found])
    return {
        "rank-1": round(float(right.mean()), 5),
        "accepted, right": round(float((right & accepted).mean()), 5),
        "accepted, wrong": round(float((~right & accepted).mean()), 5),
    }


if __name__ == "__main__":
    sys.exit(main())
