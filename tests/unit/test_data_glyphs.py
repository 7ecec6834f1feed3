"""Glyphs: what is drawn, what is kept, and how the store is built by one process or many, whole or interrupted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest

from lightning_pfc.data.cache import cache_dir
from lightning_pfc.data.errors import FormatError
from lightning_pfc.data.glyphs import Glyphs, drawing, fonts, source, store
from lightning_pfc.data.glyphs.draw import draw_characters
from lightning_pfc.data.glyphs.fonts import FontSet, Typeface, debian_fonts, matplotlib_fonts
from lightning_pfc.data.glyphs.store import GlyphStore, open_store

TTF = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
LETTERS = ((0x41, 0x5B), (0x61, 0x7B), (0x391, 0x3AA), (0x3B1, 0x3CA), (0x410, 0x450))
needs_wheels = pytest.mark.skipif(
    len(fonts.pip_fonts().trained) < 2, reason="the font wheels are not installed (extra `glyphs`)"
)


def tiny(*, heldout: bool = True, ranges: Any = LETTERS, name: str = "tiny") -> FontSet:
    """Letters of DejaVu, with STIX held out: fonts that matplotlib always brings."""
    faces = [
        Typeface(design="DejaVu Sans", path=TTF / "DejaVuSans.ttf"),
        Typeface(design="DejaVu Sans", path=TTF / "DejaVuSans-Bold.ttf"),
        Typeface(design="DejaVu Serif", path=TTF / "DejaVuSerif.ttf"),
    ]
    if heldout:
        faces.append(Typeface(design="STIX", path=TTF / "STIXGeneral.ttf", heldout=True))
    return FontSet(name=name, faces=tuple(faces), ranges=ranges)


def open_tiny(folder: Path, **kwargs: Any) -> GlyphStore:
    return open_store(kwargs.pop("fonts", tiny()), folder=folder, progress=False, **kwargs)


def test_characters_are_centred_by_their_ink() -> None:
    codepoints, images = draw_characters(TTF / "DejaVuSans.ttf", 0, np.asarray([0x2E, 0x6A, 0x4D], np.uint32), 32, 24)
    assert codepoints.tolist() == [0x2E, 0x6A, 0x4D]
    for image in images:
        rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
        assert abs((rows[0] + rows[-1]) / 2 - 15.5) <= 0.5
        assert abs((columns[0] + columns[-1]) / 2 - 15.5) <= 0.5


def test_what_leaves_no_ink_or_the_replacement_glyph_is_dropped() -> None:
    tried = np.asarray([0x20, 0x41, 0x378, 0x4E00, 0x200B], np.uint32)  # space, A, unassigned, Han, zero width space
    codepoints, _ = draw_characters(TTF / "DejaVuSans.ttf", 0, tried, 32, 24)
    assert codepoints.tolist() == [0x41]


def test_ink_that_does_not_fit_is_made_to_fit() -> None:
    _, images = draw_characters(TTF / "DejaVuSans.ttf", 0, np.asarray([0xFDFA], np.uint32), 16, 16)  # a long ligature
    for image in images:
        assert image.any()


def test_the_store_is_deterministic_whatever_the_number_of_processes(tmp_path: Path) -> None:
    one, two = open_tiny(tmp_path / "1", workers=1), open_tiny(tmp_path / "2", workers=3)
    assert np.array_equal(one.images, two.images)
    assert np.array_equal(one.codepoints, two.codepoints)
    assert one.key == two.key
    assert isinstance(one.images, np.memmap)
    assert not one.images.flags.writeable


def test_a_second_run_draws_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_tiny(tmp_path)
    monkeypatch.setattr(store, "_draw_parts", lambda *a: pytest.fail("drew again"))
    assert np.array_equal(open_tiny(tmp_path).images, first.images)


def test_look_alikes_and_repeats_are_dropped(tmp_path: Path) -> None:
    drawn = open_tiny(tmp_path)
    trained = drawn.designs != drawn.design_names.index("STIX")
    pictures = drawn.images.reshape(len(drawn.images), -1)
    _, of = np.unique(pictures[trained], axis=0, return_inverse=True)
    owners: dict[int, set[int]] = {}
    for picture, codepoint in zip(of.ravel().tolist(), drawn.codepoints[trained].tolist(), strict=True):
        owners.setdefault(picture, set()).add(codepoint)
    assert all(len(o) == 1 for o in owners.values())
    assert len(owners) == int(trained.sum())  # and no picture twice
    # Latin A, Greek Alpha and Cyrillic A look the same in DejaVu: the first stays, and keeps its pictures.
    assert {0x41, 0x391, 0x410} & set(drawn.codepoints.tolist()) == {0x41}
    assert int((drawn.codepoints[trained] == 0x41).sum()) == 3
    assert 0x67 in drawn.codepoints  # g is nobody's double


def test_look_alikes_through_others_are_one_group() -> None:
    picture = np.asarray([0, 0, 1, 1, 2, 3, 3])
    codepoints = np.asarray([10, 11, 11, 12, 13, 15, 14], np.uint32)
    everything = np.ones(7, dtype=bool)
    assert sorted(store._doubles(picture, codepoints, everything).tolist()) == [11, 12, 15]
    assert store._doubles(picture, codepoints, ~everything).tolist() == []


def test_a_held_out_font_does_not_change_what_is_trained_on(tmp_path: Path) -> None:
    with_it, without = open_tiny(tmp_path), open_tiny(tmp_path, fonts=tiny(heldout=False))
    trained = with_it.designs != with_it.design_names.index("STIX")
    assert np.array_equal(with_it.images[trained], without.images)
    assert np.array_equal(with_it.codepoints[trained], without.codepoints)
    assert with_it.heldout == (2,)
    assert without.heldout == ()


def test_a_placeholder_stands_for_no_character(tmp_path: Path) -> None:
    # LastResort draws one box per block: characters that are mapped, and not drawn.
    path = TTF / "cmtt10.ttf"
    face = Typeface(design="A", path=path)
    chars, images = draw_characters(path, 0, np.arange(0x20, 0x100, dtype=np.uint32), 32, 28)
    counts = np.unique(images.reshape(len(images), -1), axis=0, return_counts=True)[1]
    drawn = open_store(
        FontSet(name="placeholders", faces=(face,), ranges=((0x20, 0x100),)), folder=tmp_path, progress=False
    )
    assert counts.max() < 4 or len(drawn.images) < len(chars)
    faces = np.zeros(10, dtype=np.int64)
    assert store._placeholders(np.asarray([0, 0, 0, 0, 1, 1, 1, 2, 3, 4]), faces).tolist() == [True] * 4 + [False] * 6
    assert not store._placeholders(np.asarray([0, 0, 0, 0]), np.asarray([0, 1, 2, 3])).any()


def test_size_fonts_and_versions_have_stores_of_their_own(tmp_path: Path) -> None:
    keys = {
        open_tiny(tmp_path).key,
        open_tiny(tmp_path, size=24).key,
        open_tiny(tmp_path, fonts=tiny(heldout=False)).key,
    }
    assert len(keys) == 3
    assert open_tiny(tmp_path, size=24).images.shape[1:] == (24, 24)


def test_a_store_under_the_name_of_another_is_not_taken_for_it(tmp_path: Path) -> None:
    open_tiny(tmp_path)
    open_tiny(tmp_path, size=24)
    one, other = sorted((tmp_path / "glyphs").glob("tiny-*[0-9a-f]"))
    shutil.rmtree(one)
    other.rename(one)
    with pytest.raises(FormatError, match=f"{one.name}.*other fonts, sizes or versions than its name says"):
        open_tiny(tmp_path, size=24)


def test_an_interrupted_build_goes_on_from_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = open_tiny(tmp_path / "whole")
    monkeypatch.setattr(store, "_assemble", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        open_tiny(tmp_path / "cut")
    monkeypatch.undo()
    parts = sorted((tmp_path / "cut").rglob("*.npz"))
    assert len(parts) == 4 * len(LETTERS)
    assert not list((tmp_path / "cut" / "glyphs").glob("tiny-*[0-9a-f]"))  # nothing half-made under the final name
    before = {p: p.stat().st_mtime_ns for p in parts[1:]}
    parts[0].unlink()
    drawn: list[int] = []
    real = drawing.subprocess.Popen

    def count(*args: Any, **kwargs: Any) -> Any:
        drawn.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(drawing.subprocess, "Popen", count)
    kept: list[bool] = []
    assemble = store._assemble

    def look(*args: Any) -> None:
        kept.append(all(p.stat().st_mtime_ns == t for p, t in before.items()))
        assemble(*args)

    monkeypatch.setattr(store, "_assemble", look)
    again = open_tiny(tmp_path / "cut")
    assert drawn == [1]  # one missing part, one process
    assert kept == [True]
    assert np.array_equal(again.images, whole.images)
    assert not list((tmp_path / "cut").rglob("*.parts"))


SCRIPT = """
import sys, matplotlib
from pathlib import Path
from tests.unit.test_data_glyphs import open_tiny
s = open_tiny(Path(sys.argv[1]), workers=1)
print(s.key, s.images.shape[0], int(s.images.sum()))
"""


def _start(folder: Path) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder)], stdout=subprocess.PIPE, text=True, env=environment, cwd=root
    )


def test_processes_that_build_at_once_share_one_build(tmp_path: Path) -> None:
    processes = [_start(tmp_path) for _ in range(2)]
    answers = {process.communicate(timeout=120)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    expected = open_tiny(tmp_path)
    assert answers == {f"{expected.key} {len(expected.images)} {int(expected.images.sum())}\n"}
    assert len(list((tmp_path / "glyphs").glob("tiny-*px-*/images.npy"))) == 1
    assert not [p for p in (tmp_path / "glyphs").iterdir() if p.name.startswith(".") or p.name.endswith(".parts")]


def test_a_killed_builder_leaves_no_lock_behind(tmp_path: Path) -> None:
    process = _start(tmp_path)
    deadline = time.monotonic() + 60
    while not list(tmp_path.rglob("*.parts")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    started = time.monotonic()
    assert len(open_tiny(tmp_path).images) > 0
    assert time.monotonic() - started < 30


def test_a_failing_process_says_why_and_keeps_the_parts(tmp_path: Path) -> None:
    broken = tmp_path / "broken.ttf"
    broken.write_bytes(b"this is no font")
    fontset = FontSet(name="broken", faces=(Typeface(design="B", path=broken),), ranges=((0x41, 0x43),))
    with pytest.raises(RuntimeError, match=r"(?s)ended with status 1.*finished parts are kept.*(OSError|unknown file)"):
        open_store(fontset, folder=tmp_path, progress=False)


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_names_the_variable(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="PFC_CACHE_DIR"):
        open_tiny(tmp_path / "no")


def test_a_file_in_the_place_of_the_folder_names_the_variable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="PFC_CACHE_DIR"):
        open_tiny(tmp_path / "file")


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PFC_CACHE_DIR", str(tmp_path / "a"))
    assert cache_dir() == tmp_path / "a"
    assert cache_dir(tmp_path / "b") == tmp_path / "b"
    monkeypatch.delenv("PFC_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache_dir() == tmp_path / "c" / "lightning-pfc"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_dir().parts[-3:] == ("Library", "Caches", "lightning-pfc")


@pytest.mark.parametrize(("argument", "value"), [("size", 4), ("em", 40), ("em", 1)])
def test_sizes_without_meaning_are_refused(tmp_path: Path, argument: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{argument}={value}"):
        open_tiny(tmp_path, **{argument: value})


# --- the split and the pairs ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def signs(tmp_path_factory: pytest.TempPathFactory) -> FontSet:
    """About a thousand characters in two designs."""
    return tiny(ranges=((0x21, 0x530),), name="signs")


def small(folder: Path, **kwargs: Any) -> Glyphs:
    return Glyphs(
        **{
            "train_classes": 300,
            "val_classes": 60,
            "test_classes": 150,
            "impostors": 2000,
            "cache_dir": folder,
            "progress": False,
            **kwargs,
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("glyphs")


@pytest.fixture
def use_signs(monkeypatch: pytest.MonkeyPatch, signs: FontSet) -> None:
    monkeypatch.setattr(source, "pip_fonts", lambda: signs)


@pytest.mark.usefixtures("use_signs")
def test_test_characters_are_never_trained_on(folder: Path) -> None:
    data = small(folder).open()
    assert data.num_classes == 300
    assert data.num_images == len(data.labels)
    assert data.class_names is not None
    train = {ord(data.class_names[i]) for i in range(300)}
    val = set(data.validation["val"].identity.tolist())  # type: ignore[union-attr]
    test = set(data.test["test"].identity.tolist())  # type: ignore[union-attr]
    held = set(data.test["heldout"].identity.tolist())  # type: ignore[union-attr]
    assert (len(val), len(test)) == (60, 150)
    assert held <= test
    assert not train & (val | test)
    assert not val & test
    labels = np.asarray(data.labels[np.arange(data.num_images)])
    assert sorted(set(labels.tolist())) == list(range(300))


@pytest.mark.usefixtures("use_signs")
def test_a_smaller_training_set_is_part_of_a_larger_one(folder: Path) -> None:
    few, many = small(folder, train_classes=100).open(), small(folder).open()
    assert few.class_names is not None
    assert many.class_names is not None
    assert {*few.class_names} <= {*many.class_names}
    assert few.fingerprint != many.fingerprint
    first, second = few.test["test"].pairs, many.test["test"].pairs  # type: ignore[union-attr]
    assert first.first.equal(second.first)
    assert first.fold.equal(second.fold)


@pytest.mark.usefixtures("use_signs")
def test_pairs_are_what_they_claim(folder: Path) -> None:
    data = small(folder).open()
    for name, sets in (("val", data.validation), ("test", data.test), ("heldout", data.test)):
        verification = sets[name]
        pairs, identity = verification.pairs, verification.identity  # type: ignore[union-attr]
        same = identity[pairs.first] == identity[pairs.second]
        assert same.equal(pairs.same)
        assert int((~pairs.same & (pairs.fold < 0)).sum()) == 2000
        order = np.sort(np.stack([pairs.first.numpy(), pairs.second.numpy()]), axis=0)
        assert len(np.unique(order, axis=1).T) == len(pairs)  # no pair twice
        owners: dict[int, int] = {}
        for fold in range(10):
            inside = pairs.fold == fold
            assert int((inside & pairs.same).sum()) == int((inside & ~pairs.same).sum()) > 0
            for i in identity[torch_cat(pairs, inside)].tolist():
                assert owners.setdefault(i, fold) == fold  # folds share no identity


def torch_cat(pairs: Any, inside: Any) -> Any:
    return np.concatenate([pairs.first[inside].numpy(), pairs.second[inside].numpy()])


@pytest.mark.usefixtures("use_signs")
def test_genuine_pairs_are_across_designs_and_the_held_out_one_is_always_on_one_side(
    folder: Path, signs: FontSet
) -> None:
    drawn = open_store(signs, folder=folder, progress=False)
    data = small(folder).open()
    for name in ("test", "heldout"):
        verification = data.test[name]
        design = drawn.designs[verification.images.rows]  # type: ignore[union-attr, attr-defined]
        pairs = verification.pairs  # type: ignore[union-attr]
        a, b = design[pairs.first], design[pairs.second]
        assert (a != b)[pairs.same.numpy()].all()
        held = drawn.design_names.index("STIX")
        if name == "heldout":
            assert ((a == held) != (b == held)).all()
        else:
            assert not (a == held).any()
    train_rows = data.train.rows  # type: ignore[attr-defined]
    assert not (drawn.designs[train_rows] == drawn.design_names.index("STIX")).any()


@pytest.mark.usefixtures("use_signs")
def test_more_characters_than_there_are_is_refused_with_the_way_out(folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"train_classes=100000.*which leaves|train_classes=100000.*are left to train on"
    ):
        small(folder, train_classes=100_000).open()
    everything = small(folder, train_classes=None).open()
    assert everything.num_classes > 300


@pytest.mark.parametrize(
    ("argument", "value"), [("preset", "debian"), ("test_classes", 5), ("train_classes", 1), ("impostors", 0)]
)
def test_arguments_without_meaning_are_refused(argument: str, value: Any) -> None:
    with pytest.raises(ValueError, match=argument):
        Glyphs(**{argument: value})


# --- fonts ------------------------------------------------------------------------------------------------------------


def test_without_the_wheels_a_small_set_is_drawn_and_a_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    empty = FontSet(name="pip", faces=(), ranges=((0x41, 0x42),), missing=("pylopdf-fonts-jp",))
    monkeypatch.setattr(source, "pip_fonts", lambda: empty)
    with pytest.warns(UserWarning, match=r'pylopdf-fonts-jp.*pip install "lightning-pfc\[glyphs\]"'):
        assert Glyphs().fonts().name == "matplotlib"
    with pytest.raises(ValueError, match=r'preset=\'pip\'.*pip install "lightning-pfc\[glyphs\]"'):
        Glyphs(preset="pip").fonts()


def test_missing_debian_fonts_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "FONT_FOLDERS", (str(tmp_path),))
    with pytest.raises(ValueError, match=r"preset='large'.*apt-get install fonts-noto-cjk"):
        Glyphs(preset="large").fonts()


def test_debian_fonts_are_found_at_any_depth(tmp_path: Path) -> None:
    for name in ("opentype/noto/NotoSansCJK-Regular.ttc", "truetype/wqy/wqy-zenhei.ttc", "truetype/arphic/ukai.ttc"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = debian_fonts([tmp_path])
    assert found.trained == ("Noto Sans", "WenQuanYi Zen Hei")
    assert found.heldout_designs == ("AR PL UKai",)
    assert set(found.missing) == {"fonts-noto-cjk", "fonts-droid-fallback", "fonts-arphic-uming"}


def test_matplotlib_always_has_two_designs() -> None:
    found = matplotlib_fonts()
    assert found.trained == ("DejaVu Sans", "DejaVu Serif", "STIX")
    assert not found.missing
    assert all(face.path.exists() for face in found.faces)


def test_a_design_is_trained_or_held_out_never_both() -> None:
    path = TTF / "DejaVuSans.ttf"
    with pytest.raises(ValueError, match="both trained and held out"):
        FontSet(
            name="x",
            faces=(Typeface(design="A", path=path), Typeface(design="A", path=path, heldout=True)),
            ranges=((0x41, 0x42),),
        )


@needs_wheels
def test_the_font_wheels_hold_an_open_set_as_large_as_promised() -> None:
    """Over 30 k classes; at least 10 k to train on, 2,000 never trained on, 100 k impostor pairs."""
    data = Glyphs(progress=False).open()
    assert data.num_classes >= 10_000
    test = data.test["test"]
    assert len(test.identity.unique()) >= 2000  # type: ignore[union-attr]
    assert int((~test.pairs.same).sum()) >= 100_000  # type: ignore[union-attr]
    assert Glyphs(train_classes=None, progress=False).open().num_classes >= 30_000
    assert data.train.image_shape == (1, 32, 32)
    described = json.loads(next(iter(cache_dir().glob("glyphs/pip-32px-*/info.json"))).read_text())
    assert described["designs"][:2] == ["Noto Sans", "Noto Serif"]
