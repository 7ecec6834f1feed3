"""A gallery after a power cut at every moment: none acknowledged lost, none doubled, every start clean."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("faiss", reason="needs faiss-cpu, of the extra serve")

from lightning_pfc.gallery import Gallery, GalleryError, ModelRecord, NewPicture
from tests.sqlite_log import Event, Recorder, after_power_cut, library, sometimes

MODEL = ModelRecord("a" * 64, 32, "export")
STEPS: list[tuple[str, str, int]] = [
    ("enrol", "anna", 2),
    ("enrol", "bert", 1),
    ("add", "anna", 1),
    ("once", "carl", 1),
    ("remove", "bert", 0),
    ("rename", "anna", 0),
    ("extend", "dora", 40),
    ("enrol", "emil", 1),
    ("remove", "dora", 0),
    ("once", "fritz", 2),
]
"""What is done, to whom, with how many pictures."""

Contents = dict[str, int]  # pictures by identity


def _pictures(count: int, seed: int) -> list[NewPicture]:
    return [NewPicture(row) for row in np.random.default_rng(seed).standard_normal((count, MODEL.width))]


def _do(gallery: Gallery, what: str, name: str, count: int, seed: int) -> None:
    pictures = _pictures(count, seed)
    if what == "enrol":
        gallery.enrol(name, pictures)
    elif what == "once":
        with gallery.store.transaction():
            made = gallery.enrol(name, pictures)
            answer = {"name": name, "pictures": made.pictures}
            gallery.store.put_answer(f"key-{name}", "request", json.dumps(answer))
    elif what == "add":
        gallery.add_pictures(name, pictures)
    elif what == "extend":
        gallery.extend((name, one) for one in pictures)
    elif what == "rename":
        gallery.store.rename(name, name.upper())
    else:
        gallery.remove(name)


def _states() -> list[Contents]:
    """What a gallery has after each number of steps."""
    found: list[Contents] = [{}]
    for what, name, count in STEPS:
        now = dict(found[-1])
        if what == "remove":
            del now[name]
        elif what == "rename":
            now[name.upper()] = now.pop(name)
        else:
            now[name] = now.get(name, 0) + count
        found.append(now)
    return found


def _contents(gallery: Gallery) -> Contents:
    return {one.name: len(one.pictures) for one in gallery.store.identities()}


def _record(folder: Path, out: Path, synchronous: str) -> None:
    """In a process of its own: take the steps, and write down what happened to the files."""
    recorder = Recorder()
    with Gallery.open(folder) as gallery:
        gallery.store._file.execute(f"PRAGMA synchronous = {synchronous}")  # type: ignore[attr-defined]
        for i, step in enumerate(STEPS):
            _do(gallery, *step, seed=i)
            recorder.note("done")
    out.write_bytes(pickle.dumps(recorder.events))


def _recorded(tmp_path: Path, synchronous: str) -> tuple[dict[str, bytes], list[Event]]:
    if library() is None:
        pytest.skip("the SQLite library of this Python could not be found in /proc/self/maps")
    folder, out = tmp_path / "g", tmp_path / "events"
    Gallery.create(folder, MODEL).close()
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    arguments = ", ".join(map(repr, (str(folder), str(out), synchronous)))
    code = (
        "from pathlib import Path; from tests.unit.test_gallery_power_cut import _record; "
        f"a, b, c = {arguments}; _record(Path(a), Path(b), c)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
    events: list[Event] = pickle.loads(out.read_bytes())
    assert sum(event.kind == "note" for event in events) == len(STEPS)
    return before, events


def _fault(folder: Path, files: dict[str, bytes], done: int) -> str | None:
    """What is wrong with a gallery that starts from ``files`` when ``done`` steps were acknowledged."""
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    states = _states()
    try:
        with Gallery.open(folder) as gallery:
            found, faults = _contents(gallery), gallery.store.verify()
            answers = {name: gallery.store.answer(f"key-{name}", "request") is not None for name in ("carl", "fritz")}
    except GalleryError as error:
        return f"does not start: {error}"
    if faults:
        return f"verify says {faults[0]}"
    if found not in states[done : done + 2]:
        return f"has {found}, not one of {states[done : done + 2]}"
    wrong = [name for name, told in answers.items() if told != (name in found)]
    return f"the answer of {wrong[0]} and what was done differ" if wrong else None


def _faults(tmp_path: Path, before: dict[str, bytes], events: list[Event], every: int, chances: int) -> list[str]:
    found = []
    for end in range(0, len(events) + 1, every):
        done = sum(event.kind == "note" for event in events[:end])
        for seed in range(-1, chances):
            options: Any = {} if seed < 0 else {"survives": sometimes(1000 * end + seed)}
            files = after_power_cut(before, events[:end], **options)
            fault = _fault(tmp_path / f"{end}.{seed}", files, done)
            if fault:
                found.append(f"after event {end}, chance {seed}: {fault}")
    return found


def test_a_power_cut_at_every_moment_loses_nothing(tmp_path: Path) -> None:
    before, events = _recorded(tmp_path, "FULL")
    assert len(events) > 100
    assert _faults(tmp_path, before, events, every=1, chances=1) == []


@pytest.mark.parametrize("synchronous", ["OFF", "NORMAL"])
def test_fewer_syncs_would_be_noticed(tmp_path: Path, synchronous: str) -> None:
    before, events = _recorded(tmp_path, synchronous)
    assert _faults(tmp_path, before, events, every=5, chances=0) != []
