"""Shows that data sets written here are read by the tools of others, and theirs here, byte for byte.

    pip install 'lightning-pfc[data]'
    python recipes/benchmarks/formats/roundtrip.py                       # made-up images
    python recipes/benchmarks/formats/roundtrip.py --source faces/       # your own: a folder, a .rec, ...

mxnet runs in an environment of its own, since it needs numpy < 1.24 (Python 3.8 is the surest):

    python3.8 -m venv mx && mx/bin/pip install 'mxnet==1.9.1' 'numpy<1.24'
    python recipes/benchmarks/formats/roundtrip.py --mxnet mx/bin/python

Exit status 0 if every way gave back the same images with the same labels.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from lightning_pfc.data.curation.convert import convert
from lightning_pfc.data.formats import EncodedImages, FolderImages, Subset, decode, open_images

Content = Counter[tuple[str, str]]


def digest(data: bytes) -> str:
    """A short name for bytes."""
    return hashlib.sha256(data).hexdigest()


def content(images: EncodedImages) -> Content:
    """What must come back: how often each image occurs with each label."""
    return Counter((str(images.identities[images.labels[i]]), digest(images.read(i))) for i in range(len(images)))


def pairs(rows: Iterable[tuple[object, bytes]]) -> Content:
    """The same of label and bytes."""
    return Counter((str(label), digest(data)) for label, data in rows)


def made_up(folder: Path, count: int = 300) -> None:
    """Images in a folder, some with the byte pattern that RecordIO must escape."""
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((112, 112), Image.Resampling.BICUBIC)
        out = io.BytesIO()
        pixels.save(out, "JPEG" if number % 3 else "PNG")
        data = out.getvalue()
        if number % 10 == 1:  # behind the end of the JPEG, where decoders do not look
            data += bytes(-len(data) % 4) + b"\x0a\x23\xd7\xce" * 3 + b"tail"
        path = folder / f"{number % 20:02d}" / f"{number}.{'jpg' if number % 3 else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def main() -> int:
    """Runs every way that the installed tools allow; prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", help="a data set; made-up images if not given")
    parser.add_argument("--limit", type=int, default=2000, help="use so many images of it (%(default)s)")
    parser.add_argument("--mxnet", metavar="PYTHON", help="the Python of an environment with mxnet")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        if options.source is None:
            made_up(work / "source")
        source = open_images(options.source or work / "source")
        source = Subset(source, np.arange(min(len(source), options.limit)))
        # Numbers for names, because mxnet knows no others.
        source.identities = np.arange(source.num_classes)
        wanted = content(source)
        results = [*ours_by_others(source, work, options.mxnet), *others_by_us(source, work, options.mxnet)]
    print(f"\n{len(source)} images of {source.num_classes} classes\n")
    print(f"{'written by':<24}{'read by':<28}{'images':>8}  same bytes and labels")
    failed = 0
    for writer, reader, got in results:
        if isinstance(got, str):
            print(f"{writer:<24}{reader:<28}{'-':>8}  not run: {got}")
            continue
        same = got == wanted
        failed += not same
        print(f"{writer:<24}{reader:<28}{sum(got.values()):>8}  {'yes' if same else 'NO'}")
    return 1 if failed else 0


Result = tuple[str, str, Content | str]


def attempt(writer: str, reader: str, run: Callable[[], Content]) -> Result:
    """A line of the table; a missing library is no failure."""
    try:
        return writer, reader, run()
    except ImportError as error:
        return writer, reader, str(error)


def ours_by_others(source: EncodedImages, work: Path, mxnet: str | None) -> Iterable[Result]:
    """Files of pfc-data, read by everybody else."""
    for layout in ("headered", "flat"):
        path = work / f"ours-{layout}.rec"
        convert(source, path, "recordio", layout=layout, progress=False)
        yield from mxnet_reads(path, layout, mxnet)

    def webdataset() -> Content:
        import webdataset as wds

        convert(source, work / "ours-wds", "webdataset", shard_size=700, progress=False)
        shards = sorted(str(path) for path in (work / "ours-wds").glob("*.tar"))
        rows = []
        for sample in wds.WebDataset(shards, shardshuffle=False):
            image = next(value for key, value in sample.items() if key in ("jpg", "png", "webp", "bmp", "gif"))
            rows.append((int(sample["cls"]), image))
        return pairs(rows)

    def pyarrow() -> Content:
        import pyarrow.parquet as pq

        convert(source, work / "ours-parquet", "parquet", shard_size=700, progress=False)
        table = pq.read_table(work / "ours-parquet" / "data")
        images = table.column("image").to_pylist()
        return pairs((label, image["bytes"]) for label, image in zip(table["label"].to_pylist(), images, strict=True))

    def hugging_face() -> Content:
        import datasets

        convert(source, work / "ours-hf", "huggingface", shard_size=700, progress=False)
        data = datasets.load_dataset(str(work / "ours-hf"), split="train", cache_dir=str(work / "cache"))
        data = data.cast_column("image", datasets.Image(decode=False))
        return pairs((row["label"], row["image"]["bytes"]) for row in data)

    def torchvision() -> Content:
        from torchvision.datasets import ImageFolder

        convert(source, work / "ours-folder", "folder", progress=False)
        data = ImageFolder(str(work / "ours-folder"))
        return pairs((label, Path(path).read_bytes()) for path, label in data.samples)

    def opencv() -> Content:
        import cv2

        # OpenCV gives pixels, so these are compared with those decoded here; the list names the files.
        convert(source, work / "ours-list", "list", progress=False)
        lines = (work / "ours-list" / "list.tsv").read_text().splitlines()[1:]
        rows = []
        for line in lines:
            path, label = line.split("\t")
            data = (work / "ours-list" / path).read_bytes()
            theirs = cv2.cvtColor(cv2.imread(str(work / "ours-list" / path), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
            rows.append((int(label), data if np.array_equal(theirs, decode(data)) else b"other pixels"))
        return pairs(rows)

    yield attempt("pfc-data webdataset", "webdataset", webdataset)
    yield attempt("pfc-data parquet", "pyarrow", pyarrow)
    yield attempt("pfc-data huggingface", "datasets.load_dataset", hugging_face)
    yield attempt("pfc-data folder", "torchvision ImageFolder", torchvision)
    yield attempt("pfc-data list", "OpenCV (pixels)", opencv)


def mxnet_reads(path: Path, layout: str, mxnet: str | None) -> Iterable[Result]:
    """A RecordIO file read by mxnet's MXIndexedRecordIO."""
    who = f"pfc-data {layout} .rec", "mxnet MXIndexedRecordIO"
    if mxnet is None:
        yield *who, "give --mxnet"
        return
    script = Path(__file__).with_name("mxnet_side.py")
    command = [mxnet, str(script), "read", str(path), layout]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    yield *who, Counter((line.split()[0], line.split()[1]) for line in lines)


def others_by_us(source: EncodedImages, work: Path, mxnet: str | None) -> Iterable[Result]:
    """Files of everybody else, read here."""
    images = [source.read(i) for i in range(len(source))]
    labels = source.labels.tolist()
    folder = work / "theirs"
    folder.mkdir()
    if mxnet is None:
        yield "mxnet", "lightning_pfc recordio", "give --mxnet"
    else:
        order = np.argsort(source.labels, kind="stable").tolist()
        sizes = np.array([len(images[i]) for i in order])
        blob = np.frombuffer(b"".join(images[i] for i in order), np.uint8)
        np.savez(work / "plain.npz", labels=source.labels[order], sizes=sizes, bytes=blob)
        script = Path(__file__).with_name("mxnet_side.py")
        subprocess.run([mxnet, str(script), "write", str(folder), str(work / "plain.npz")], check=True)
        for layout in ("headered", "flat"):
            yield f"mxnet {layout} .rec", "lightning_pfc recordio", content(open_images(folder / f"{layout}.rec"))

    def webdataset() -> Content:
        import webdataset as wds

        with wds.ShardWriter(str(folder / "wds-%03d.tar"), maxcount=500, verbose=0) as shards:
            for number, (label, image) in enumerate(zip(labels, images, strict=True)):
                shards.write({"__key__": f"{number:06d}", "jpg": image, "cls": label})
        return content(open_images(str(folder / "wds-*.tar"), "webdataset"))

    def pyarrow() -> Content:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"image": images, "label": labels}), folder / "a.parquet", row_group_size=100)
        return content(open_images(folder / "a.parquet"))

    def hugging_face() -> Content:
        import datasets

        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        rows = {"image": [{"bytes": image, "path": None} for image in images], "label": labels}
        datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(folder / "hf"))
        return content(open_images(folder / "hf"))

    def opencv() -> Content:
        import cv2

        # Written anew by OpenCV as PNG, so again pixels are compared.
        for number, (label, image) in enumerate(zip(labels, images, strict=True)):
            path = folder / "cv" / f"{label:06d}" / f"{number:06d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), cv2.cvtColor(decode(image), cv2.COLOR_RGB2BGR))
        back = FolderImages(folder / "cv")
        rows = []
        for place in range(len(back)):
            number = int(back.name(place).split("/")[1])
            same = np.array_equal(decode(back.read(place)), decode(images[number]))
            rows.append((int(back.labels[place]), images[number] if same else b"other pixels"))
        return pairs(rows)

    yield attempt("webdataset", "lightning_pfc webdataset", webdataset)
    yield attempt("pyarrow", "lightning_pfc parquet", pyarrow)
    yield attempt("datasets.save_to_disk", "lightning_pfc huggingface", hugging_face)
    yield attempt("OpenCV (pixels)", "lightning_pfc folder", opencv)


if __name__ == "__main__":
    sys.exit(main())
