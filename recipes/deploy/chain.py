"""From nothing to a service that answers: train, calibrate, export, serve, enrol, search; with the time of each.

python recipes/deploy/chain.py                     # trains pfc-train's default run first
python recipes/deploy/chain.py --run runs/X        # from a run that there is
python recipes/deploy/chain.py --run runs/X --folder photos/

The test characters, which no run has seen, are enrolled as one design draws them and searched as the other does; of a
folder with one folder of pictures per identity, the first picture is enrolled and the second searched. What the service
answers stands beside what numpy finds with the embeddings of the trained module itself.
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
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "service"))

from client import Service
from starting import command, service


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
    options = parser.parse_args(arguments)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        run = options.run or work / "run"
        if options.run is None:
            found["train, s"] = _timed(lambda: _must("train", f"output_dir={run}"))
        found["calibrate, s"] = _timed(lambda: _must("eval", f"run={run}", f"calibrate.far={options.far}"))
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

    source = instantiate(OmegaConf.load(run / "config.yaml")["data"]["source"])
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
    (work / "photos" / "nobody").mkdir(parents=True)
    (work / "photos" / "nobody" / "1.png").write_bytes(_png(np.zeros((32, 32), np.uint8)))
    _must("gallery", "build", work / "gallery", work / "photos", "--model", work / "export")
    _must("gallery", "remove", work / "gallery", "nobody")
    process, host = service(work / "log", work / "export", "--gallery", work / "gallery")
    try:
        client = Service(f"http://{host}")
        with ThreadPoolExecutor(8) as pool:
            enrol = _timed(
                lambda: list(pool.map(lambda name, one: client.enrol(name, [one]), pictures.names, pictures.enrolled))
            )
            begun = time.perf_counter()
            answers = list(pool.map(lambda picture: client.search(picture, k=1)[0], pictures.searched))
            search = time.perf_counter() - begun
            rows = np.array(list(pool.map(lambda picture: client.embed(picture)[0], pictures.searched[:200])))
    finally:
        process.terminate()
        status = process.wait(60)
    wanted, names = _of_module(work / "export", pictures)
    own = wanted[1][:200]
    own = own / np.linalg.norm(own, axis=1, keepdims=True)
    cosines = (rows / np.linalg.norm(rows, axis=1, keepdims=True) * own).sum(1)
    return {
        "enrol, pictures a second": round(len(pictures.names) / enrol, 1),
        "search, a second": round(len(pictures.names) / search, 1),
        "ended with": status,
        "embeddings, 1 - least cosine with the module's": float(1 - cosines.min()),
        "service": _figures([(one["identity"], one["same"]) for one in answers], pictures.names),
        "module": _figures(names, pictures.names),
    }


def _of_module(export: Path, pictures: Pictures) -> tuple[list[np.ndarray], list[tuple[str, bool | None]]]:
    """Embeddings of both parts by the trained module, and the nearest names with the threshold's decision."""
    from lightning_pfc.deploy import Recogniser

    recogniser = Recogniser.load(export, "torch")
    rows = [recogniser.embed(part) for part in (pictures.enrolled, pictures.searched)]
    first, second = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in rows)
    scores = second @ first.T
    best = scores.argmax(1)
    threshold = next(iter(recogniser.thresholds.values())).value
    return rows, [(pictures.names[j], bool(scores[i, j] > threshold)) for i, j in enumerate(best.tolist())]


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
