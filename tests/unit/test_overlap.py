"""pfc-data overlap and merge: what two sets have in common against a twin that makes every pair, and joining them."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lightning_pfc.commands.data import main
from lightning_pfc.data.formats import EncodedImages, FolderImages, open_images
from lightning_pfc.data.overlap import cosines
from lightning_pfc.data.overlap.cosines import Pairs, TooManyPairsError, equal_keys, pairs_above, strongest, unit_rows
from lightning_pfc.data.overlap.fingerprints import perceptual_hash, take_fingerprints
from lightning_pfc.data.overlap.identity_means import Embedded, consequence, identity_means
from lightning_pfc.data.overlap.listing import Row, read_list
from lightning_pfc.data.overlap.merging import MergedImages
from lightning_pfc.deploy import embedders
from lightning_pfc.deploy.errors import ExportError


def scene(seed: int) -> Image.Image:
    """A picture like no other."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))  # details, as photos have
    return small.resize((96, 96), Image.Resampling.BICUBIC)


def put(image: Image.Image, path: Path, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Ann is in both under two names, with one equal file, one equal picture and one copy; bob is two people."""
    a, b = tmp_path / "a", tmp_path / "b"
    for k in range(4):
        put(scene(k), a / "ann" / f"{k}.png")
        put(scene(10 + k), a / "bob" / f"{k}.png")
        put(scene(20 + k), b / "bob" / f"{k}.png")
        put(scene(30 + k), b / "eve" / f"{k}.png")
    (b / "ann_b").mkdir()
    shutil.copy(a / "ann" / "0.png", b / "ann_b" / "same.png")
    put(scene(1), b / "ann_b" / "pixels.bmp")
    put(scene(2).resize((70, 70), Image.Resampling.BILINEAR), b / "ann_b" / "near.jpg", quality=60)
    put(scene(40), b / "ann_b" / "new.png")
    return a, b


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="," if path.suffix == ".csv" else "\t"))


def test_pairs_of_rows_against_every_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cosines, "BLOCK", 7)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(20, 5)).astype(np.float32), rng.normal(size=(17, 5)).astype(np.float32)
    found = pairs_above(unit_rows(a), 20, unit_rows(b), 17, 0.5, progress=False)
    wanted = []
    for i in range(20):
        for j in range(17):
            cosine = a[i] @ b[j] / np.linalg.norm(a[i]) / np.linalg.norm(b[j])
            if cosine > 0.5:
                wanted.append((i, j, cosine))
    assert len(wanted) > 10
    assert list(zip(found.a, found.b, strict=True)) == [(i, j) for i, j, _ in wanted]
    np.testing.assert_allclose(found.score, [cosine for _, _, cosine in wanted], atol=1e-6)
    keys_a, keys_b = rng.integers(0, 3, (30, 2)).astype(np.uint64), rng.integers(0, 3, (25, 2)).astype(np.uint64)
    equal = equal_keys(keys_a, keys_b, what="keys")
    assert list(zip(equal.a, equal.b, strict=True)) == [
        (i, j) for i in range(30) for j in range(25) if keys_a[i].any() and (keys_a[i] == keys_b[j]).all()
    ]
    monkeypatch.setattr(cosines, "MOST_PAIRS", 10)
    with pytest.raises(TooManyPairsError, match=r"more than 10 pairs are above 0\.5"):
        pairs_above(unit_rows(a), 20, unit_rows(b), 17, 0.5, progress=False)
    with pytest.raises(TooManyPairsError, match="equal"):
        equal_keys(keys_a, keys_b, what="keys")
    with pytest.raises(ValueError, match="not finite"):
        unit_rows(np.array([[np.nan, 1.0]]))(slice(None))


def test_the_surest_way_counts() -> None:
    def pairs(*both: tuple[int, int], score: float) -> Pairs:
        a, b = np.array(both, np.int64).reshape(-1, 2).T
        return Pairs(a, b, np.full(len(a), score, np.float32))

    found, kinds = strongest(
        ("bytes", pairs((1, 1), score=1)),
        ("near", pairs((0, 2), (1, 1), score=0.9)),
        ("embedding", pairs((0, 2), (0, 1), score=0.8)),
    )
    assert list(zip(found.a.tolist(), found.b.tolist(), kinds.tolist(), strict=True)) == [
        (0, 1, "embedding"),
        (0, 2, "near"),
        (1, 1, "bytes"),
    ]


def test_means_of_identities_are_means_of_all_pairs() -> None:
    rng = np.random.default_rng(1)
    labels = np.array([2, 0, 0, 2, 3, 2, 0])
    rows = rng.normal(size=(7, 6)).astype(np.float32)
    means = identity_means(Embedded(rows, np.arange(7), labels, 4))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    for one in range(4):
        for other in range(4):
            every = [unit[i] @ unit[j] for i in range(7) for j in range(7) if (labels[i], labels[j]) == (one, other)]
            np.testing.assert_allclose(means[one] @ means[other], np.mean(every) if every else 0, atol=1e-6)


def test_what_a_threshold_does() -> None:
    rng = np.random.default_rng(2)
    people = rng.normal(size=(50, 32))
    people[1] = people[0]  # one identity under two numbers
    labels = np.repeat(np.arange(50), 4)
    rows = (people[labels] + 0.3 * rng.normal(size=(200, 32))).astype(np.float32)
    said = consequence(Embedded(rows, np.arange(200), labels, 50), 0.7)
    assert (said.pairs, said.above, said.identities, said.found) == (1225, 1, 50, 50)
    said = consequence(Embedded(rows, np.arange(200), np.arange(200), 200), 0.99)
    assert (said.identities, said.found) == (0, 0)  # one picture each: nothing to compare with


def test_the_hash_knows_copies_and_no_others() -> None:
    def bits(image: Image.Image) -> np.ndarray[Any, Any]:
        return np.unpackbits(np.frombuffer(perceptual_hash(np.asarray(image)), np.uint8))

    for seed in range(30):
        own = bits(scene(seed))
        file = io.BytesIO()
        scene(seed).resize((64, 64), Image.Resampling.BILINEAR).save(file, "JPEG", quality=60)
        assert (own != bits(Image.open(file))).sum() <= 24
        assert (own != bits(scene(seed).convert("L").convert("RGB"))).sum() <= 2
        assert (own != bits(scene(seed + 100))).sum() > 60
    assert perceptual_hash(np.full((50, 40, 3), 7, np.uint8)) == b""


def test_by_pixels(two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = two
    (b / "eve" / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    for path in (a / "flat" / "1.png", b / "grey" / "1.png"):  # nearly one value, and not the same: no copies
        put(Image.new("RGB", (32, 32), (90, 90, 90 + (path.parent.name == "flat"))), path)
    out = tmp_path / "out" / "list.tsv"
    assert main(["overlap", str(a), str(b), str(out), "--quiet", "--workers", "2"]) == 1
    rows = table(out)
    assert {(row["picture_a"], row["picture_b"], row["how"]) for row in rows if row["kind"] == "picture"} == {
        ("ann/0.png", "ann_b/same.png", "bytes"),
        ("ann/1.png", "ann_b/pixels.bmp", "pixels"),
        ("ann/2.png", "ann_b/near.jpg", "near"),
    }
    kinds = {row["kind"]: row for row in rows if row["kind"] != "picture"}
    assert (kinds["identity"]["identity_a"], kinds["identity"]["identity_b"]) == ("ann", "ann_b")
    assert (kinds["identity"]["score"], kinds["identity"]["how"]) == ("0.7500", "pictures")
    assert (kinds["name"]["identity_a"], kinds["name"]["score"]) == ("bob", "")
    assert kinds["broken"]["picture_b"] == "eve/broken.jpg"
    with Image.open(out.with_suffix(".png")) as sheet:
        assert sheet.size == (1000, 3 * 20 + 3 * 136)
        assert np.asarray(sheet).std() > 20
    said = capsys.readouterr().out
    assert "1 in both (3 and 4 in all)" in said
    assert "3 of 9 are in the other set as 3 of 14" in said
    assert not (tmp_path / "out" / "list.tsv.partial").exists()
    # What was found can be left out of the first set.
    assert main(["convert", str(a), str(tmp_path / "clean"), "--to", "folder", "--exclude", str(out), "--quiet"]) == 0
    assert sorted(os.listdir(tmp_path / "clean" / "ann")) == ["3.png"]
    words = ["convert", str(a), str(tmp_path / "others"), "--to", "folder", "--quiet", "--exclude-identities"]
    assert main([*words, str(out)]) == 0
    assert sorted(os.listdir(tmp_path / "others")) == ["bob", "flat"]
    for lines, said in (("nobody\tx\n", "'nobody', which"), ("ann\tx\nbob\ty\nflat\tz\n", "nothing would be left")):
        (tmp_path / "l.tsv").write_text("identity_a\tidentity_b\n" + lines)
        capsys.readouterr()
        assert main([*words[:2], str(tmp_path / "no"), *words[3:], str(tmp_path / "l.tsv")]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_pictures_and_identities_left_out_by_one_list(
    two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, _ = two
    lists = tmp_path / "l.csv"
    every = "".join(f"{image},picture,ann,x\n" for image in range(4))  # no picture of ann is left for the second list
    words = ["convert", str(a), str(tmp_path / "out"), "--to", "folder", "--quiet"]
    both = ["--exclude", str(lists), "--exclude-identities", str(lists)]
    lists.write_text(f"image,kind,identity_a,identity_b\n{every},identity,ann,x\n4,picture,bob,x\n")
    assert main([*words, *both]) == 0
    assert os.listdir(tmp_path / "out") == ["bob"]
    assert sorted(os.listdir(tmp_path / "out" / "bob")) == ["1.png", "2.png", "3.png"]
    every += "".join(f"{image},picture,bob,x\n" for image in range(4, 8))
    lists.write_text(f"image,kind,identity_a,identity_b\n{every}")
    assert main([*words[:2], str(tmp_path / "no"), *words[3:], "--exclude", str(lists)]) == 2
    assert "nothing would be left" in capsys.readouterr().err
    lists.write_text(f'image,kind,identity_a,identity_b\n0,picture,"ann,x\n{every}')
    assert main([*words[:2], str(tmp_path / "no"), *words[3:], "--exclude", str(lists)]) == 2
    assert "no line of a table" in capsys.readouterr().err, "a quote that nobody closes swallows no lines"
    assert not (tmp_path / "no").exists()


def test_nothing_in_common(two: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = two
    shutil.rmtree(b / "ann_b")
    assert main(["overlap", str(a), str(b), str(tmp_path / "l.csv"), "--png", str(tmp_path / "s.jpg"), "--quiet"]) == 0
    assert [row["kind"] for row in table(tmp_path / "l.csv")] == ["name"]
    assert Image.open(tmp_path / "s.jpg").format == "JPEG"


@pytest.fixture
def split(pictures: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Ten identities with two pictures each in one set, six of them with two others and another name in the other."""
    for number in range(10):
        for picture in range(4):
            [path] = (pictures / f"id{number:02d}").glob(f"p{picture}.*")
            if picture < 2:
                target = tmp_path / "train" / f"id{number:02d}" / path.name
            elif number < 6:
                target = tmp_path / "test" / f"other{number}" / path.name
            else:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    return tmp_path / "train", tmp_path / "test"


def test_by_embedding(
    split: tuple[Path, Path],
    export_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train, test = split
    (test / "other1" / "bad.png").write_text("no picture")
    out = tmp_path / "list.tsv"
    words = ["overlap", str(train), str(test), str(out), "--model", str(export_folder), "--quiet", "--threshold", "0.5"]
    calls: list[int] = []
    embed = embedders._Exported.embed_pixels

    def fails_later(self: Any, pixels: Any) -> Any:
        calls.append(len(pixels))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return embed(self, pixels)

    monkeypatch.setattr(embedders._Exported, "embed_pixels", fails_later)
    more = ["--same-picture", "0.9", "--batch-size", "8"]
    assert main([*words, *more]) == 130  # in the third batch of the first set
    assert not out.exists()
    assert main([*words, *more]) == 1
    assert sum(calls) - calls[2] == 20 + 12, "nothing is embedded twice"
    assert not (tmp_path / "list.tsv.partial").exists()
    # The twin: every pair of pictures.
    a, b = FolderImages(train), FolderImages(test)
    embedder = embedders.open_embedder(export_folder)

    def embeddings(images: EncodedImages) -> tuple[list[int], Any]:
        good = [i for i in range(len(images)) if not images.locate(i).endswith("bad.png")]
        rows = embedder.embed_pixels(np.stack([embedder.prepare(images.read(i)) for i in good]))
        return good, rows / np.linalg.norm(rows, axis=1, keepdims=True)

    (here, left), (there, right) = embeddings(a), embeddings(b)
    every = left @ right.T
    wanted = {
        (a.identities[one], b.identities[other]): mean
        for one in range(a.num_classes)
        for other in range(b.num_classes)
        if (mean := every[np.ix_(a.labels[here] == one, b.labels[there] == other)].mean()) > 0.5
    }
    rows = table(out)
    found = {(r["identity_a"], r["identity_b"]): float(r["score"]) for r in rows if r["kind"] == "identity"}
    assert found == pytest.approx(wanted, abs=2e-4)
    assert len({(f"id0{k}", f"other{k}") for k in range(6)} & set(found)) >= 4
    alike = {
        (os.path.relpath(a.locate(here[i]), train), os.path.relpath(b.locate(there[j]), test))
        for i, j in np.argwhere(every > 0.9)
    }
    assert {(r["picture_a"], r["picture_b"]) for r in rows if r["kind"] == "picture"} == alike
    said = capsys.readouterr().out
    assert "cosine 0.5, which you gave" in said
    assert "identities of one set are above it" in said
    assert "one half of their pictures by the other" in said


def test_a_threshold_by_name_or_none(
    split: tuple[Path, Path],
    export_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lightning_pfc.deploy.folder import open_folder
    from lightning_pfc.deploy.recogniser import Recogniser
    from lightning_pfc.runs.thresholds import Threshold, Thresholds

    words = ["overlap", *map(str, split), str(tmp_path / "l.tsv"), "--quiet", "--no-pixels", "--same-picture", "none"]
    words.append("--force")
    assert main([*words, "--model", str(export_folder)]) == 2
    assert "has no threshold of its own: give a cosine, such as --threshold 0.4" in capsys.readouterr().err
    calibrated = tmp_path / "calibrated"
    shutil.copytree(export_folder, calibrated)
    known = Threshold(name="far=1e-3", kind="verification", value=0.61, rate=1e-3, interval=(0, 2e-3), flip="sum")
    [description] = [path for path in calibrated.glob("*.json") if b"preprocessing" in path.read_bytes()][:1]
    about = open_folder(calibrated).changed(thresholds=Thresholds({"far=1e-3": known}))
    about.write(description)
    assert main([*words, "--model", str(calibrated)]) in (0, 1)
    assert "cosine 0.6100 (far=1e-3: of pairs of pictures of two people 0.001 are above it)" in capsys.readouterr().out
    assert main([*words, "--model", str(calibrated), "--flip"]) in (0, 1)
    assert "cosine 0.6100" in capsys.readouterr().out
    adding = tmp_path / "adding"  # the network adds mirror images itself
    shutil.copytree(calibrated, adding)
    plain = dataclasses.replace(known, name="plain", flip="none")
    both = Thresholds({"plain": plain, "far=1e-3": known})
    itself = about.changed(model=dataclasses.replace(about.model, flip="sum"), thresholds=both)
    itself.write(adding / description.name)
    flips: list[bool] = []
    load = Recogniser.load

    def watched(*given: Any, flip: bool = False, **more: Any) -> Recogniser:
        flips.append(flip)
        return load(*given, flip=flip, **more)

    monkeypatch.setattr(Recogniser, "load", watched)
    for more in ([], ["--threshold", "far=1e-3"]):
        assert main([*words, "--model", str(adding), *more]) in (0, 1)
        assert "cosine 0.6100 (far=1e-3" in capsys.readouterr().out
    assert flips == [False, False]
    assert main([*words, "--model", str(adding), "--threshold", "plain"]) == 2
    assert "'plain' was chosen with flip=none" in capsys.readouterr().err
    about.changed(thresholds=both).write(description)
    assert main([*words, "--model", str(calibrated), "--threshold", "plain", "--flip"]) == 2
    assert "--flip: threshold 'plain' was chosen without mirror images" in capsys.readouterr().err
    about.changed(thresholds=Thresholds({"far=1e-3": known})).write(description)
    assert main([*words, "--model", str(calibrated), "--threshold", "far=1e-9"]) == 2
    assert "There are: far=1e-3" in capsys.readouterr().err
    assert main([*words, "--model", str(export_folder), "--threshold", "-1"]) == 2
    assert "100% of the pairs of identities of one set are above the threshold" in capsys.readouterr().err


def test_pictures_without_identities(two: tuple[Path, Path], tmp_path: Path) -> None:
    from lightning_pfc.evaluation.bins import write_bin

    a, b = two
    data = [(b / "ann_b" / "same.png").read_bytes(), (b / "eve" / "1.png").read_bytes()]
    write_bin(tmp_path / "pairs.bin", data, [False])
    loose = tmp_path / "loose"
    loose.mkdir()
    shutil.copy(a / "bob" / "2.png", loose / "x.png")
    for other, wanted in ((tmp_path / "pairs.bin", "ann"), (loose, "bob")):
        out = tmp_path / f"{other.stem}.tsv"
        assert main(["overlap", str(a), str(other), str(out), "--quiet"]) == 1
        rows = table(out)
        assert [(row["identity_a"], row["how"]) for row in rows if row["kind"] == "picture"] == [(wanted, "bytes")]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{a}", "{a}", "l.tsv"], "both sets are"),
        (["{a}", "{a}/../a", "l.tsv"], "both sets are"),
        (["{a}", "{b}", "l.txt"], "named so|name it so"),
        (["{a}", "{b}", "{a}/l.tsv"], "would become part of it"),
        (["{a}", "{b}", "l.tsv", "--png", "{b}/bob/l.png"], "would become part of it"),
        (["{a}", "none", "l.tsv"], "no such file or folder: none"),
        (["{a}", "empty", "l.tsv"], "empty"),
        (["{a}", "{b}", "l.tsv", "--near", "200"], "--near is 200"),
        (["{a}", "{b}", "l.tsv", "--workers", "0"], "--workers is 0"),
        (["{a}", "{b}", "l.tsv", "--threshold", "0.4"], "--model MODEL"),
        (["{a}", "{b}", "l.tsv", "--flip"], "--flip is of embeddings: give what makes them, --model MODEL"),
        (["{a}", "{b}", "l.tsv", "--fit", "crop"], "--fit crop is of embeddings"),
        (["{a}", "{b}", "l.tsv", "--batch-size", "64"], "--batch-size 64 is of embeddings"),
        (["{a}", "{b}", "l.tsv", "--same-picture", "0.95"], "--same-picture 0.95 is of embeddings"),
        (["{a}", "{b}", "l.tsv", "--no-pixels", "--model", "none", "--near", "0"], "--near 0 is of pixels"),
        (["{a}", "{b}", "l.tsv", "--no-pixels"], "leaves nothing to compare"),
        (["{a}", "{b}", "l.tsv", "--same-picture", "x"], "--same-picture is 'x'"),
        (["{a}", "{b}", "l.tsv", "--model", "none", "--threshold", "0.4"], "none: is not there"),
        (["{a}", "{b}", "l.tsv", "--model", "none", "--threshold", "7"], "--threshold is '7'"),
        (["{a}", "{b}", "l.tsv", "--model", "timm:nosuch", "--threshold", "0.4"], "timm does not give it"),
    ],
)
def test_what_is_wrong_with_a_comparison(
    two: tuple[Path, Path],
    tmp_path: Path,
    words: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    filled = [word.format(a=two[0], b=two[1]) for word in words]
    assert main(["overlap", *filled, "--quiet"]) == 2
    error = capsys.readouterr().err
    assert any(part in error for part in said.split("|")), error
    assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "empty"]


# merging


def merged(two: tuple[Path, Path], *pairs: tuple[Any, ...], **options: Any) -> MergedImages:
    rows = [Row(k, "identity", *pair) if len(pair) == 2 else Row(k, *pair) for k, pair in enumerate(pairs, start=2)]
    return MergedImages(FolderImages(two[0]), FolderImages(two[1]), rows, **{"prefixes": ("x", "y"), **options})


def test_one_identity_under_two_names_and_two_under_one(two: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = two
    lists = tmp_path / "list.tsv"
    assert main(["overlap", str(a), str(b), str(lists), "--quiet"]) == 1
    words = ["merge", str(a), str(b), str(tmp_path / "out"), "--to", "folder", "--pairs", str(lists), "--quiet"]
    assert main(words) == 0
    found = {name: sorted(os.listdir(tmp_path / "out" / name)) for name in os.listdir(tmp_path / "out")}
    assert found == {
        "a.bob": [f"a_{k}.png" for k in range(4)],
        "ann": ["a_0.png", "a_1.png", "a_2.png", "a_3.png", "b_new.png"],  # three of b are in a
        "b.bob": [f"b_{k}.png" for k in range(4)],
        "eve": [f"b_{k}.png" for k in range(4)],
    }
    assert (tmp_path / "out" / "b.bob" / "b_2.png").read_bytes() == (b / "bob" / "2.png").read_bytes()


@pytest.mark.parametrize("format", ["recordio", "list", "parquet", "webdataset"])
def test_every_format(format: str, two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if format in ("parquet", "webdataset"):
        pytest.importorskip({"parquet": "pyarrow"}.get(format, format))
    words = ["merge", *map(str, two), str(tmp_path / "out"), "--to", format, "--same-names", "--quiet"]
    assert main(words) == 0
    assert "20 pictures of 4 identities" in capsys.readouterr().out
    back = open_images(tmp_path / "out" / "list.tsv" if format == "list" else tmp_path / "out")
    assert sorted(np.bincount(back.labels).tolist()) == [4, 4, 4, 8]
    if format != "recordio":  # where names lie beside the file
        assert sorted(map(str, back.identities)) == ["ann", "ann_b", "bob", "eve"]


def test_numbers_are_no_names(two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in two:
        assert main(["convert", str(path), str(tmp_path / f"{path.name}.rec"), "--quiet"]) == 0
        (tmp_path / f"{path.name}.names.txt").unlink()
    words = ["merge", str(tmp_path / "a.rec"), str(tmp_path / "b.rec"), str(tmp_path / "out"), "--to", "folder"]
    assert main([*words, "--same-names", "--quiet"]) == 2
    assert "numbers" in capsys.readouterr().err
    assert main([*words, "--quiet"]) == 0
    assert sorted(os.listdir(tmp_path / "out")) == ["2", "a.0", "a.1", "b.0", "b.1"]


def test_chains_and_contradictions(two: tuple[Path, Path]) -> None:
    assert merged(two, ("ann", "ann_b"), ("ann", "ann_b")).counts.joined == 1
    with pytest.raises(ValueError, match=r"2 identities of the second set one \('ann_b', 'eve'"):
        merged(two, ("ann", "ann_b"), ("ann", "eve"))
    with pytest.raises(ValueError, match="2 identities of the first set one"):
        merged(two, ("ann", "eve"), ("bob", "eve"))
    chained = merged(two, ("ann", "eve"), ("bob", "eve"), ("bob", "bob"), allow_chains=True)
    assert sorted(map(str, chained.identities)) == ["ann", "ann_b"]
    assert chained.counts.joined == 1
    with pytest.raises(ValueError, match="line 4 says that 'bob' and 'bob' are different"):
        merged(two, ("ann", "eve"), ("bob", "eve"), ("different", "bob", "bob"), ("ann", "bob"), allow_chains=True)
    assert merged(two, ("ann", "ann_b"), ("different", "bob", "bob")).counts.prefixed == 2
    with pytest.raises(ValueError, match=r"identity_b 'an_b', which that set has not; did you mean 'ann_b'\?"):
        merged(two, ("ann", "an_b"))
    a, _ = two
    os.rename(a / "ann", a / "y.bob")  # the name that the prefix would make
    with pytest.raises(ValueError, match=r"two identities would be called 'y.bob': give other prefixes"):
        merged(two)
    assert merged(two, prefixes=("p", "q")).counts.identities == 5


def test_the_list_is_of_these_data(two: tuple[Path, Path]) -> None:
    copy = ("picture", "ann", "ann_b", 0, 0, "bytes")
    assert merged(two, ("ann", "ann_b"), copy).counts.left_out == 1
    both = merged(two, copy)  # not joined: nobody knows whose it is
    assert (both.counts.left_out, both.counts.contradicting, len(both)) == (0, 1, 20)
    assert merged(two, ("ann", "ann_b"), (*copy[:-1], "embedding")).counts.left_out == 0
    for wrong in (("picture", "bob", "ann_b", 0, 0, "bytes"), ("picture", "ann", "ann_b", 99, 0, "bytes")):
        with pytest.raises(ValueError, match="the list was made of other data"):
            merged(two, wrong)


def test_an_interrupted_merge_goes_on(
    two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["merge", *map(str, two), str(tmp_path / "out"), "--to", "folder", "--quiet"]
    read, left = MergedImages.read, [9]

    def stops(self: MergedImages, index: int) -> bytes:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return read(self, index)

    monkeypatch.setattr(MergedImages, "read", stops)
    assert main(words) == 130
    assert not (tmp_path / "out").exists()
    left[0] = 99
    assert main([*words, "--same-names"]) == 2
    assert "left by another conversion" in capsys.readouterr().err
    assert main(words) == 0
    assert 99 - left[0] == 20 - 8, "it began anew"
    assert sum(len(files) for _, _, files in os.walk(tmp_path / "out")) == 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "out"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{a}", "{a}", "out"], "both sets are"),
        (["{a}", "{b}", "{a}/out"], "would become part of it"),
        (["{a}", "{b}", "{b}"], "would become part of it"),
        (["{a}", "empty", "out"], "empty"),
        (["{a}", "{b}", "out", "--pairs", "none.tsv"], "none.tsv"),
        (["{a}", "{b}", "out", "--pairs", "l.txt"], "name it so"),
        (["{a}", "{b}", "out", "--prefixes", "x", "x"], "give two that differ"),
        (["{a}", "{b}", "out", "--shard-size", "0"], "shard_size is 0"),
    ],
)
def test_what_is_wrong_with_a_merge(
    two: tuple[Path, Path],
    tmp_path: Path,
    words: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    filled = [word.format(a=two[0], b=two[1]) for word in words]
    assert main(["merge", *filled, "--to", "folder", "--quiet"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "empty"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must name a column identity_a"),
        ("a\tb\n", "must name a column identity_a"),
        ("identity_a\tidentity_b\nann\t\n", "line 2: a pair needs both"),
        ("kind\tidentity_a\tidentity_b\nsame\tann\tbob\n", "kind 'same' is none of"),
        ("image\tidentity_a\tidentity_b\n-1\tann\tbob\n", "image '-1' is not the position"),
        ('identity_a\tidentity_b\n"' + "x" * 200_000 + '"\ty\n', "no line of a table"),
    ],
)
def test_lists_that_are_none(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "l.tsv").write_text(text)
    with pytest.raises(ValueError, match=said):
        read_list(tmp_path / "l.tsv")


def test_names_of_any_kind_survive_the_list(tmp_path: Path) -> None:
    names = ['a"b', "tab\there", "line\nbreak", "comma,", "über", "=1+1"]
    for which in "ab":
        for k, name in enumerate(names):
            put(scene(k), tmp_path / which / name / "1.png")
    put(scene(50), tmp_path / "a" / '"other' / "1.png")
    put(scene(50), tmp_path / "a" / '"other' / "2.png")
    for ending in ("tsv", "csv"):
        out = tmp_path / f"l.{ending}"
        assert main(["overlap", str(tmp_path / "a"), str(tmp_path / "b"), str(out), "--quiet"]) == 1
        rows = read_list(out)
        assert sorted((row.identity_a, row.identity_b) for row in rows if row.kind == "identity") == sorted(
            (name, name) for name in names
        )
        words = ["convert", str(tmp_path / "a"), str(tmp_path / ending), "--to", "folder", "--quiet", "--exclude"]
        assert main([*words, str(out)]) == 0
        assert [sorted(path.name for path in (tmp_path / ending).glob("*/*"))] == [["1.png", "2.png"]]
        checked = tmp_path / f"checked.{ending}"
        assert main(["check", str(tmp_path / ending), "--list", str(checked), "--quiet"]) == 1
        words = ["convert", str(tmp_path / ending), str(tmp_path / f"{ending}2"), "--to", "folder", "--quiet"]
        assert main([*words, "--exclude", str(checked)]) == 0
        assert len([*(tmp_path / f"{ending}2").glob("*/*")]) == 1


def test_fingerprints_of_a_broken_picture(two: tuple[Path, Path]) -> None:
    a, _ = two
    (a / "ann" / "0.png").write_bytes(b"")
    found = take_fingerprints(FolderImages(a), progress=False)
    assert [place for place, _ in found.broken] == [0]
    assert found.has_hash.tolist() == [False] + [True] * 7
    assert not found.pixels[0].any()


def test_a_network_of_timm_needs_its_weights() -> None:
    with pytest.raises(ExportError, match="timm does not give it with weights"):
        embedders.open_embedder("timm:glyphnet")
    with pytest.raises(ValueError, match="computed by torch"):
        embedders.open_embedder("timm:glyphnet", engine="openvino")
