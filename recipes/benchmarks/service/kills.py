"""Kill a service and ``pfc-gallery add`` at random moments of enrolling, and count what was lost or doubled.

python recipes/benchmarks/service/kills.py EXPORT PICTURES --kills 200

PICTURES is a folder with one folder of pictures per identity. Ends with status 1 if anything acknowledged was lost,
anything was there twice, or a start was not clean.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "deploy"))
sys.path.insert(0, str(Path(__file__).parent))

from client import Service, ServiceError
from starting import command, service

from lightning_pfc.gallery.addresses import open_gallery

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 0 if nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--kills", type=int, default=200, help="half of the service, half of `pfc-gallery add` (200)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        of_command = _kill_command(Path(folder), options.export, options.pictures, options.kills // 2, chance)
        of_service = _kill_service(Path(folder), options.export, options.pictures, -(-options.kills // 2), chance)
    print(json.dumps({"add": of_command, "service": of_service}, indent=2))
    return int(any(found["faults"] for found in (of_command, of_service)))


def _kill(process: subprocess.Popen[str], after: float) -> bool:
    """Kill a process in the middle; False if it had ended by itself."""
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def _state(gallery: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Faults of a gallery, and the digests of its identities' pictures."""
    with open_gallery(str(gallery)) as opened:
        faults = opened.store.verify()
        found = {one.name: list(map(str, one.pictures)) for one in opened.store.identities(limit=10**6)}
    return faults, found


# --- pfc-gallery add --------------------------------------------------------------------------------------------------


def _kill_command(folder: Path, export: Path, pictures: Path, kills: int, chance: random.Random) -> dict[str, Any]:
    """``add`` of one folder, killed again and again: what was there stays, each picture once, until all are there."""
    wanted = {one.name: len(_images(one)) for one in sorted(pictures.iterdir()) if one.is_dir()}
    small = folder / "first"
    shutil.copytree(pictures / next(iter(wanted)), small / next(iter(wanted)))
    faults: list[str] = []
    done = galleries = partial = 0
    while done < kills:
        gallery = folder / f"added{galleries}"
        galleries += 1
        if command("gallery", "build", gallery, small, "--model", export, stdout=subprocess.DEVNULL).wait():
            raise SystemExit("build failed")
        have = 1
        while done < kills:
            process = command("gallery", "add", gallery, pictures, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            _until_written(process, gallery)
            killed = _kill(process, chance.uniform(0, 0.4))
            done += killed
            wrong, found = _state(gallery)
            faults += wrong
            partial += killed and len(wanted) > len(found) > have
            faults += [f"{have} identities, then {len(found)}"] if len(found) < have else []
            have = len(found)
            faults += [f"{name} has a picture twice" for name in found if len(found[name]) > wanted.get(name, 0)]
            if not killed:
                if process.returncode or {name: len(numbers) for name, numbers in found.items()} != wanted:
                    faults.append(f"add ended with {process.returncode} and {len(found)} of {len(wanted)} identities")
                break
    return {"kills": done, "in the middle": partial, "galleries": galleries, "faults": faults}


def _until_written(process: subprocess.Popen[str], gallery: Path) -> None:
    """Wait until a process writes to the gallery, so that a kill does not meet its start only."""
    log = gallery / "gallery.sqlite3-wal"
    while process.poll() is None and not (log.exists() and log.stat().st_size):
        time.sleep(0.002)


def _images(folder: Path) -> list[Path]:
    return sorted(one for one in folder.iterdir() if one.suffix.lower() in _SUFFIXES)


# --- the service ------------------------------------------------------------------------------------------------------


class _Enrolling(threading.Thread):
    """Enrols one identity after the other until the service is gone, and remembers what it was told."""

    def __init__(self, url: str, jobs: list[tuple[str, list[Path]]], told: dict[str, int], sent: set[str]) -> None:
        super().__init__(daemon=True)
        self.service = Service(url, attempts=1)
        self.jobs, self.told, self.sent = jobs, told, sent

    def run(self) -> None:
        while self.jobs:
            name, images = self.jobs.pop()
            again = name in self.sent
            self.sent.add(name)
            try:
                self.told[name] = len(self.service.enrol(name, list(images))["pictures"])
            except ServiceError as error:
                if again and error.status == 409:  # it was done before the kill, and the answer was lost
                    self.told[name] = len(images)
                    continue
                self.jobs.append((name, images))
                return
            except Exception:  # the connection broke
                self.jobs.append((name, images))
                return


def _kill_service(folder: Path, export: Path, pictures: Path, kills: int, chance: random.Random) -> dict[str, Any]:
    """Four clients enrol; the service is killed and started again; what was answered is there, whole, and once."""
    images = [_images(one)[:3] for one in sorted(pictures.iterdir()) if one.is_dir()]
    gallery, faults = folder / "served", list[str]()
    one = folder / "first"
    if command("gallery", "build", gallery, one, "--model", export, stdout=subprocess.DEVNULL).wait():
        raise SystemExit("build failed")
    told: dict[str, int] = {}
    sent: set[str] = set()
    jobs: list[tuple[str, list[Path]]] = []
    made = 0
    for number in range(kills):
        while len(jobs) < 400:
            jobs.insert(0, (f"n{made:07d}", images[made % len(images)]))
            made += 1
        try:
            process, host = service(folder / "log", export, "--gallery", gallery)
        except RuntimeError as error:
            faults.append(f"start {number}: {error}")
            continue
        threads = [_Enrolling(f"http://{host}", jobs, told, sent) for _ in range(4)]
        for thread in threads:
            thread.start()
        _kill(process, chance.uniform(0.05, 1.5))
        for thread in threads:
            thread.join(30)
        wrong, found = _state(gallery)
        faults += wrong
        faults += [f"{name} was acknowledged and is not there" for name in told if name not in found]
        faults += [
            f"{name} has {len(found[name])} pictures, not {count}"
            for name, count in told.items()
            if name in found and len(found[name]) != count
        ]
        faults += [f"{name} is there and nobody sent it" for name in found if name[0] == "n" and name not in sent]
    return {"kills": kills, "enrolled": len(told), "faults": faults}


if __name__ == "__main__":
    sys.exit(main())
