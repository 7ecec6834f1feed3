"""A gallery against brute force in numpy: searching, changes, several processes, what is left on the disk."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("faiss", reason="needs faiss-cpu, of the extra serve")

from lightning_pfc.calibration import NotCalibratedError, Threshold, Thresholds
from lightning_pfc.deploy import Recogniser
from lightning_pfc.gallery import (
    Gallery,
    GalleryError,
    GalleryFullError,
    IdentityExistsError,
    ModelRecord,
    NewPicture,
    NotAGalleryError,
    OtherModelError,
    UnknownIdentityError,
    sqlite_schema,
)
from lightning_pfc.gallery.addresses import who_else_may_read
from lightning_pfc.gallery.deciding import decide
from lightning_pfc.gallery.records import Match
from lightning_pfc.gallery.sqlite_schema import DATABASE

MODEL = ModelRecord("a" * 64, 32, "export")


def random_vectors(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, MODEL.width)).astype(np.float32)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def filled(folder: Path, vectors: np.ndarray, names: list[str], **options: Any) -> Gallery:
    gallery = Gallery.create(folder, MODEL, **options)
    gallery.extend((name, NewPicture(vector)) for name, vector in zip(names, vectors, strict=True))
    return gallery


def brute_force(vectors: np.ndarray, names: list[str], query: np.ndarray, pooling: str) -> list[tuple[str, float]]:
    scores: dict[str, list[float]] = {}
    for name, score in zip(names, (unit(vectors) @ unit(query)).tolist(), strict=True):
        scores.setdefault(name, []).append(score)
    pooled = {name: (max(s) if pooling == "max" else float(np.mean(s))) for name, s in scores.items()}
    return sorted(pooled.items(), key=lambda item: -item[1])


@pytest.mark.parametrize("pooling", ["max", "mean"])
@pytest.mark.parametrize("precision", ["float16", "8bit"])
def test_search_equals_brute_force(tmp_path: Path, pooling: str, precision: str) -> None:
    vectors = random_vectors(1500)
    vectors[700:1400] = vectors[:700] + 0.02 * random_vectors(700, 1)  # near doubles, which rounding would confuse
    names = [f"n{i % 500}" for i in range(1500)]
    with filled(tmp_path / "g", vectors, names, pooling=pooling, precision=precision) as gallery:
        for query in random_vectors(20, 2):
            found = [(match.identity, match.score) for match in gallery.search(query, 10)]
            wanted = brute_force(vectors, names, query, pooling)[:10]
            assert [name for name, _ in found] == [name for name, _ in wanted]
            assert [score for _, score in found] == pytest.approx([score for _, score in wanted], abs=1e-6)


@pytest.mark.parametrize("pooling", ["max", "mean"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_order_of_changes_is_followed(
    tmp_path_factory: pytest.TempPathFactory, pooling: str, data: st.DataObject
) -> None:
    gallery = Gallery.create(tmp_path_factory.mktemp("any") / "g", MODEL, pooling=pooling)
    kept: dict[str, list[np.ndarray]] = {}
    random = random_vectors(60, 5)
    with gallery:
        for i in range(data.draw(st.integers(1, 25))):
            name = data.draw(st.sampled_from("abcd"))
            what = data.draw(st.sampled_from(["enrol", "add", "remove", "picture", "rename", "search"]))
            if what == "enrol" and name not in kept:
                gallery.enrol(name, [NewPicture(random[i]), NewPicture(random[i + 25])])
                kept[name] = [random[i], random[i + 25]]
            elif what == "add" and name in kept:
                gallery.add_pictures(name, [NewPicture(random[i])])
                kept[name].append(random[i])
            elif what == "remove" and name in kept:
                gallery.remove(name)
                del kept[name]
            elif what == "picture" and kept.get(name):
                gallery.remove_picture(gallery.store.identity(name).pictures[0])
                kept[name].pop(0)
            elif what == "rename" and name in kept and name + name not in kept:
                gallery.store.rename(name, name + name)
                kept[name + name] = kept.pop(name)
            else:
                found = gallery.search(random[59], 10)
                names = [name for name, vectors in kept.items() for _ in vectors]
                vectors = [vector for vectors in kept.values() for vector in vectors]
                wanted = brute_force(np.array(vectors), names, random[59], pooling) if vectors else []
                assert [match.identity for match in found] == [name for name, _ in wanted]


def test_another_process_s_changes_are_seen(tmp_path: Path) -> None:
    vectors = random_vectors(50)
    gallery = filled(tmp_path / "g", vectors, [f"n{i}" for i in range(50)])
    assert gallery.search(vectors[7], 1)[0].identity == "n7"
    script = (
        "import sys, numpy as np; from lightning_pfc.gallery import Gallery, NewPicture\n"
        "with Gallery.open(sys.argv[1]) as g:\n"
        "    g.remove('n7'); g.enrol('new', [NewPicture(np.load(sys.argv[2]))])"
    )
    np.save(tmp_path / "v.npy", vectors[7])
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "g"), str(tmp_path / "v.npy")], check=True)
    assert gallery.search(vectors[7], 1)[0].identity == "new"
    gallery.close()


def test_deleted_numbers_are_gone_from_every_file_and_from_the_index(tmp_path: Path) -> None:
    vectors = unit(random_vectors(30))
    preview = b"\xff\xd8 a face that must not stay \xff\xd9" * 3
    with filled(tmp_path / "g", vectors, [f"n{i}" for i in range(30)]) as gallery:
        secret = unit(random_vectors(1, 9))[0]
        gallery.enrol("secret person", [NewPicture(secret, "secret file", preview)], {"note": "secret note"})
        gallery.search(secret, 1)
        secret = gallery.store.vectors_of(np.array([31]))[0]
        words = [secret.astype("<f4").tobytes(), preview, b"secret person", b"secret file", b"secret note"]
        assert all(found_in(tmp_path, word) for word in words)
        gallery.remove("secret person")
        assert not any(found_in(tmp_path, word) for word in words)
        index = gallery._follower.index
        assert len(index) == 30
        assert secret.astype(np.float16).tobytes() not in index._codes().tobytes()
    assert not any(found_in(tmp_path, word) for word in words)


def test_an_answer_goes_with_the_last_of_its_pictures(tmp_path: Path) -> None:
    words = [b"secret person", b"secret note"]
    with Gallery.create(tmp_path / "g", MODEL) as gallery:
        for name, key in (("secret person", "k1"), ("b", "k2")):
            with gallery.store.transaction():
                made = gallery.enrol(
                    name, [NewPicture(row) for row in random_vectors(2, len(name))], {"n": "secret note"}
                )
                answer = {"name": name, "pictures": made.pictures, "metadata": made.metadata}
                gallery.store.put_answer(key, "digest", json.dumps(answer))
        gallery.store.rename("secret person", "a")
        gallery.store.set_metadata("b", {})
        gallery.remove_picture(gallery.store.identity("b").pictures[0])
        assert json.loads(gallery.store.answer("k2", "digest") or "")["pictures"] == [3, 4]
        assert found_in(tmp_path, b"secret person")
        gallery.remove("a")
        assert not found_in(tmp_path, b"secret person")
        with pytest.raises(UnknownIdentityError, match="'k1' was enrolled, and has been removed since"):
            gallery.store.answer("k1", "digest")
        gallery.remove_picture(4)
        with pytest.raises(UnknownIdentityError, match="'k2'"):
            gallery.store.answer("k2", "digest")
        assert not any(found_in(tmp_path, word) for word in words)


def found_in(folder: Path, word: bytes) -> bool:
    return any(word in file.read_bytes() for file in folder.rglob("*") if file.is_file())


def test_what_a_killed_process_left_in_the_log_is_gone_after_opening(tmp_path: Path) -> None:
    vectors = unit(random_vectors(3))
    filled(tmp_path / "g", vectors, ["a", "b", "c"]).close()
    script = (
        "import os, sys; from lightning_pfc.gallery import Gallery; import lightning_pfc.gallery.sqlite_file as s\n"
        "g = Gallery.open(sys.argv[1]); s.SqliteFile.empty_log = lambda self: os._exit(9); g.remove('b')"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path / "g")]).returncode == 9
    with Gallery.open(tmp_path / "g") as gallery:
        assert gallery.store.count() == (2, 2)
        assert not found_in(tmp_path, vectors[1].astype("<f4").tobytes())


def test_a_change_is_whole_or_absent(tmp_path: Path) -> None:
    with Gallery.create(tmp_path / "g", MODEL) as gallery:
        with pytest.raises(ValueError, match="31 numbers"):
            gallery.enrol("a", [NewPicture(random_vectors(1)[0]), NewPicture(np.ones(31, np.float32))])
        assert gallery.store.count() == (0, 0)
        gallery.enrol("a", [NewPicture(random_vectors(1)[0])])
        with pytest.raises(IdentityExistsError, match="'a' exists already"):
            gallery.enrol("a", [])
        with pytest.raises(UnknownIdentityError, match="no identity 'b'"):
            gallery.add_pictures("b", [])
        gallery.enrol("b", [])
        with pytest.raises(IdentityExistsError, match="'a' exists"):
            gallery.store.rename("b", "a")


@pytest.mark.parametrize("bad", [np.zeros(32), np.full(32, np.nan), np.full(32, np.inf), np.ones(33)])
def test_bad_vectors_are_refused(tmp_path: Path, bad: np.ndarray) -> None:
    with Gallery.create(tmp_path / "g", MODEL) as gallery:
        with pytest.raises(ValueError, match="vector has"):
            gallery.enrol("a", [NewPicture(bad)])
        with pytest.raises(ValueError, match="vector has"):
            gallery.search(bad)
        with pytest.raises(GalleryError, match="k=0"):
            gallery.search(np.ones(32), 0)


def test_only_galleries_are_opened(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotAGalleryError, match="is a file; a gallery is the folder"):
        Gallery.open(tmp_path / "file")
    (tmp_path / "file").unlink()
    with pytest.raises(NotAGalleryError, match="pfc-gallery build"):
        Gallery.open(tmp_path)
    Gallery.create(tmp_path / "g", MODEL).close()
    with pytest.raises(GalleryError, match="a gallery already"):
        Gallery.create(tmp_path / "g", MODEL)
    with sqlite3.connect(tmp_path / "g" / DATABASE) as own:
        own.execute("PRAGMA user_version = 99")
    with pytest.raises(NotAGalleryError, match="version 99"):
        Gallery.open(tmp_path / "g")
    assert [file.name for file in tmp_path.iterdir()] == ["g"]


def _database_of_another(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as other, other:
        other.execute("CREATE TABLE pictures (id INTEGER)")


STRANGERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "text": (lambda path: path.write_bytes(b"not a database, whatever its name is" * 100), "damaged"),
    "empty": (lambda path: path.write_bytes(b""), "damaged"),
    "cut": (lambda path: path.write_bytes(b"SQLite format 3\0"), "damaged"),
    "database": (_database_of_another, "another program"),
    "folder": (lambda path: path.mkdir(), "no ordinary file"),
    "pipe": (os.mkfifo, "no ordinary file"),
    "link": (lambda path: path.symlink_to("elsewhere"), "no ordinary file"),
}


@pytest.mark.parametrize("kind", sorted(STRANGERS))
def test_what_is_no_gallery_is_neither_opened_nor_built_upon_nor_touched(tmp_path: Path, kind: str) -> None:
    path = tmp_path / DATABASE
    make, words = STRANGERS[kind]
    make(path)

    def seen() -> tuple[list[str], bytes | None]:
        return [one.name for one in tmp_path.iterdir()], path.read_bytes() if path.is_file() else None

    before = seen()
    for work in (lambda: Gallery.open(tmp_path), lambda: Gallery.create(tmp_path, MODEL)):
        with pytest.raises(NotAGalleryError, match=words):
            work()
    assert seen() == before


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM settings WHERE name = 'pooling'",
        "UPDATE settings SET value = 'median' WHERE name = 'pooling'",
        "UPDATE settings SET value = 'x' WHERE name = 'generation'",
        "UPDATE settings SET value = 'x' WHERE name = 'model'",
        "DELETE FROM models",
        "DROP TABLE settings",
    ],
)
def test_damaged_settings_are_no_gallery(tmp_path: Path, change: str) -> None:
    filled(tmp_path / "g", random_vectors(2), ["a", "b"]).close()
    with contextlib.closing(sqlite3.connect(tmp_path / "g" / DATABASE)) as tampered, tampered:
        tampered.execute(change)
    with pytest.raises(NotAGalleryError, match="restore it from a backup"):
        Gallery.open(tmp_path / "g")


@pytest.mark.parametrize("begin", ["BEGIN", "BEGIN IMMEDIATE"])
def test_who_reads_or_writes_for_long_keeps_nobody_from_searching(tmp_path: Path, begin: str) -> None:
    vectors = random_vectors(3)
    with (
        filled(tmp_path / "g", vectors, ["a", "b", "c"]) as first,
        contextlib.closing(sqlite3.connect(tmp_path / "g" / DATABASE, isolation_level=None)) as other,
    ):
        other.execute(begin)
        other.execute("SELECT count(*) FROM pictures").fetchall()
        if begin == "BEGIN":
            first.enrol("d", [NewPicture(-vectors[0])])  # the other one still reads what was before
        with Gallery.open(tmp_path / "g") as gallery:
            assert gallery.search(vectors[1], 1)[0].identity == "b"
            assert gallery.store.count()[0] == (4 if begin == "BEGIN" else 3)


@pytest.mark.parametrize("text", ["unable to open database file", "attempt to write a readonly database"])
def test_a_place_that_cannot_be_written_says_what_can_be_done_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # whoever runs the tests may write anywhere
    with pytest.raises(GalleryError, match="cannot be written here"), sqlite_schema.explained(tmp_path / DATABASE):
        raise sqlite3.OperationalError(text)


@pytest.mark.parametrize(
    ("room", "kind", "words"), [(1000, GalleryFullError, "disk is full"), (1 << 30, GalleryError, "quota")]
)
def test_an_error_of_the_disk_has_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, kind: type[Exception], words: str
) -> None:
    monkeypatch.setattr(sqlite_schema.shutil, "disk_usage", lambda folder: SimpleNamespace(free=room))
    with pytest.raises(kind, match=words), sqlite_schema.explained(tmp_path / DATABASE):
        raise sqlite3.OperationalError("disk I/O error")


@pytest.mark.parametrize("name", ["", " ", "\u3000", ".", "..", "a\nb", "a\0b", "x" * 501, "\udcff", "\u202ea"])
def test_a_name_is_text_that_can_be_shown_and_addressed(tmp_path: Path, name: str) -> None:
    with Gallery.create(tmp_path / "g", MODEL) as gallery:
        for work in (
            lambda: gallery.enrol(name, []),
            lambda: gallery.extend([(name, NewPicture(np.ones(32, np.float32)))]),
        ):
            with pytest.raises(GalleryError, match="must be"):
                work()
        assert gallery.store.count() == (0, 0)
        with pytest.raises(GalleryError, match=r"no identity|not UTF-8"):
            gallery.remove(name)


def test_an_identity_has_a_picture_once(tmp_path: Path) -> None:
    vectors = random_vectors(4)
    pictures = [("a", NewPicture(vectors[0], digest="x")), ("b", NewPicture(vectors[1], digest="x"))]
    with Gallery.create(tmp_path / "g", MODEL) as gallery:
        gallery.extend(pictures)
        gallery.extend([*pictures, ("a", NewPicture(vectors[2], digest="y")), ("a", NewPicture(vectors[2]))])
        gallery.extend([("a", NewPicture(vectors[2]))])
        assert gallery.store.has("a", "y")
        assert not gallery.store.has("b", "y")
        assert gallery.store.count() == (2, 4)
        assert gallery.search(vectors[0], 5)[0].identity == "a"


def test_another_model_is_refused(tmp_path: Path) -> None:
    with Gallery.create(tmp_path / "g", MODEL) as gallery:
        gallery.check_model(MODEL)
        with pytest.raises(OtherModelError, match="reembed"):
            gallery.check_model(ModelRecord("b" * 64, 32, "other"))


def test_names_are_listed_page_by_page(tmp_path: Path) -> None:
    names = [f"n{i:04}" for i in range(25)]
    with filled(tmp_path / "g", random_vectors(25), names) as gallery:
        pages, last = [], ""
        while page := gallery.store.identities(last, 10):
            pages.append([identity.name for identity in page])
            last = page[-1].name
        assert [name for page in pages for name in page] == names
        assert gallery.info().pictures == 25
        assert gallery.info().bytes_on_disk > 25 * 4 * MODEL.width


def test_moving_to_another_model(tmp_path: Path) -> None:
    old, new = random_vectors(2500), np.random.default_rng(3).standard_normal((2500, 48)).astype(np.float32)
    names = [f"n{i}" for i in range(2500)]
    following = ModelRecord("b" * 64, 48, "better export")
    with filled(tmp_path / "g", old, names) as gallery:
        store = gallery.store
        with pytest.raises(GalleryError, match="not on its way"):
            store.adopt_next()
        store.begin_next(following)
        store.begin_next(following)  # a run that was killed begins again
        with pytest.raises(GalleryError, match="on its way to model bbbb"):
            store.begin_next(ModelRecord("c" * 64, 48, "third"))
        while waiting := store.pending(limit=700):
            with pytest.raises(GalleryError, match="no vector of the next model"):
                store.adopt_next()
            assert gallery.search(old[5], 1)[0].identity == "n5"
            store.put_next(following, [(one.picture, new[int(one.identity[1:])]) for one in waiting])
        other = Gallery.open(tmp_path / "g")
        gallery.remove("n7")
        store.adopt_next()
        assert store.model == following
        assert gallery.search(new[5], 1)[0].identity == "n5"
        assert all(match.identity != "n7" for match in gallery.search(new[7], 5))
        assert store.verify() == []
        assert not found_in(tmp_path, unit(old[5:6])[0].astype("<f4").tobytes())
        with pytest.raises(OtherModelError, match="open it again"):
            other.search(old[5], 1)
        with pytest.raises(OtherModelError, match="open it again"):
            other.enrol("late", [NewPicture(old[5])])
        other.close()


def test_a_move_to_a_model_that_is_lost_can_be_given_up(tmp_path: Path) -> None:
    old, lost = random_vectors(30), ModelRecord("c" * 64, 48, "lost")
    halfway = np.random.default_rng(3).standard_normal(48).astype(np.float32)
    with filled(tmp_path / "g", old, [f"n{i}" for i in range(30)]) as gallery:
        store = gallery.store
        with pytest.raises(GalleryError, match="not on its way"):
            store.abort_next()
        store.begin_next(lost)
        store.put_next(lost, [(1, halfway)])
        with pytest.raises(GalleryError, match="--abort"):
            store.begin_next(ModelRecord("b" * 64, 8, "next"))
        store.abort_next()
        assert (gallery.search(old[5], 1)[0].identity, store.model, store.verify()) == ("n5", MODEL, [])
        assert not found_in(tmp_path, unit(halfway).astype("<f4").tobytes())
        store.begin_next(ModelRecord("b" * 64, 8, "next"))
        assert len(store.pending()) == 30
        with pytest.raises(GalleryError, match="somebody gave that up"):  # who has not heard of it yet
            store.put_next(lost, [(2, halfway)])


def test_a_copy_of_a_gallery_in_use_and_a_smaller_gallery(tmp_path: Path) -> None:
    vectors = random_vectors(3000)
    with filled(tmp_path / "g", vectors, [f"n{i}" for i in range(3000)]) as gallery:
        gallery.search(vectors[0], 1)
        gallery.store.backup(tmp_path / "copy")
        with pytest.raises(GalleryError, match="a gallery already"):
            gallery.store.backup(tmp_path / "copy")
        for i in range(20):
            gallery.remove(f"n{i}")
        gallery.store.compact()
        assert gallery.search(vectors[100], 1)[0].identity == "n100"
        assert gallery.info().pictures == 2980
    with Gallery.open(tmp_path / "copy") as copy:
        assert copy.info().pictures == 3000
        assert copy.search(vectors[3], 1)[0].identity == "n3"
        assert copy.store.verify() == []
    assert [file.name for file in (tmp_path / "copy").iterdir()] == [DATABASE]


@pytest.mark.skipif(os.name != "posix", reason="files have no mode there")
def test_only_its_owner_may_read_a_gallery_its_log_and_its_copy(tmp_path: Path) -> None:
    before = os.umask(0)  # what a shell may have
    try:
        with filled(tmp_path / "g", random_vectors(5), list("abcde")) as gallery:
            gallery.store.backup(tmp_path / "copy")
            files = [*(tmp_path / "g").iterdir(), *(tmp_path / "copy").iterdir()]
            assert {file.name for file in files} >= {DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm"}
            assert {file.name: file.stat().st_mode & 0o077 for file in files} == dict.fromkeys(
                (f.name for f in files), 0
            )
            assert who_else_may_read(str(tmp_path / "g")) is None
            gallery.store.compact()
            assert (tmp_path / "g" / DATABASE).stat().st_mode & 0o077 == 0
        (tmp_path / "g" / DATABASE).chmod(0o640)  # on purpose
        with Gallery.open(tmp_path / "g") as gallery:
            gallery.remove("a")
            assert (tmp_path / "g" / f"{DATABASE}-wal").stat().st_mode & 0o777 == 0o640
        assert who_else_may_read(str(tmp_path / "g")) == "its group"
        (tmp_path / "g" / DATABASE).chmod(0o604)
        assert who_else_may_read(str(tmp_path / "g")) == "every user of this machine"
    finally:
        os.umask(before)


def test_verify_names_what_is_wrong(tmp_path: Path) -> None:
    filled(tmp_path / "g", random_vectors(5), list("abcde")).close()
    with sqlite3.connect(tmp_path / "g" / DATABASE) as tampered:
        tampered.execute("UPDATE vectors SET vector = zeroblob(128) WHERE id % 8 = 2")
        tampered.execute("UPDATE vectors SET vector = x'00' WHERE id % 8 = 3")
        tampered.execute("DELETE FROM vectors WHERE id % 8 = 4")
        tampered.execute("UPDATE identities SET metadata = '{' WHERE name = 'e'")
        tampered.execute("UPDATE identities SET name = x'ff' WHERE name = 'a'")
    with Gallery.open(tmp_path / "g") as gallery:
        faults = gallery.store.verify()
        assert [fault.split(" ", 2)[:2] for fault in faults[:2]] == [["identity", "1"], ["identity", "5"]]
        assert [fault.split(" ", 2)[1] for fault in faults[2:]] == ["2", "3", "4"]
        with pytest.raises(NotAGalleryError, match="metadata of 'e'"):
            gallery.store.identity("e")
        with pytest.raises(NotAGalleryError, match="damaged"):
            gallery.search(random_vectors(1)[0])


def test_a_request_that_comes_twice_is_answered_once(tmp_path: Path) -> None:
    with Gallery.create(tmp_path / "g", MODEL) as gallery:
        store = gallery.store
        with store.transaction():
            store.enrol("a", [NewPicture(random_vectors(1)[0])])
            store.put_answer("key", "enrol a", "done")
        assert store.answer("key", "enrol a") == "done"
        assert store.answer("other", "enrol a") is None
        with pytest.raises(GalleryError, match="another request"):
            store.answer("key", "enrol b")
        with pytest.raises(IdentityExistsError):
            enrol_again(gallery)
        assert store.answer("second", "") is None


def enrol_again(gallery: Gallery) -> None:
    with gallery.store.transaction():
        gallery.store.put_answer("second", "", "")
        gallery.enrol("a", [])


def test_a_search_takes_a_threshold_of_either_kind_by_its_name() -> None:
    kinds: dict[str, Any] = {"far=1e-3": "verification", "fpir=5e-2@200": "identification"}
    known = {
        name: Threshold(name=name, kind=kind, value=0.5, rate=0.1, interval=(0.05, 0.2)) for name, kind in kinds.items()
    }
    recogniser: Any = Recogniser.__new__(Recogniser)  # of which only the thresholds are asked
    recogniser.flip = False
    recogniser.description = SimpleNamespace(thresholds=Thresholds(known), model=SimpleNamespace(flip="none"))
    for name in (*kinds, None):
        [decision] = decide([Match("anna", 0.6, 1)], recogniser, name)
        assert (decision.same, decision.threshold) == (True, name or "fpir=5e-2@200")
    with pytest.raises(NotCalibratedError, match="far=1e-9"):
        decide([Match("anna", 0.6, 1)], recogniser, "far=1e-9")
