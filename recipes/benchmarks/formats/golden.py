"""Writes small files with the tools of others: the golden files that the tests read.

Run with mxnet 1.9.1, in an environment of its own (mxnet needs numpy < 1.24 and Python 3.8 or so):

    python3.8 -m venv mx && mx/bin/pip install 'mxnet==1.9.1' 'numpy<1.24' opencv-python-headless pillow
    mx/bin/python recipes/benchmarks/formats/golden.py tests/golden/formats

The other files need webdataset, pyarrow and datasets and can come from the project's environment:

    python recipes/benchmarks/formats/golden.py --no-mxnet tests/golden/formats

The pictures are drawn here. `images.npz` holds what every file must give back: the bytes and the labels.
"""

# This file also runs on Python 3.8, for mxnet.
# ruff: noqa: ANN001, ANN201, ANN202, B905, UP031

import io
import os
import shutil
import subprocess
import sys
import tempfile

import numpy as np
from PIL import Image

MAGIC = b"\x0a\x23\xd7\xce"


def pictures():
    """Twelve little images (JPEG and PNG) of four classes, as bytes, and their labels."""
    rng = np.random.default_rng(7)
    images, labels = [], []
    for number in range(12):
        label = number // 3
        pixels = np.zeros((16, 16, 3), np.uint8)
        pixels[label * 4 : label * 4 + 4] = rng.integers(64, 256, (4, 16, 3))
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "JPEG" if number % 2 else "PNG", quality=90)
        images.append(out.getvalue())
        labels.append(label)
    return images, labels


def hostile():
    """Payloads that contain the magic of RecordIO where it must be escaped, and where it must not."""
    return [
        MAGIC + b"begins with it, and 4 more",
        b"four" * 5 + MAGIC + b"middle" + MAGIC + b"odd one stays",
        b"four" * 5 + MAGIC + MAGIC + MAGIC,
        b"end" + b"." * 9 + MAGIC,
        b"x",
    ]


def main():
    """Writes the files into the folder that the command line names."""
    folder = sys.argv[-1]
    os.makedirs(folder, exist_ok=True)
    images, labels = pictures()
    if "--no-mxnet" in sys.argv:
        others(folder, images, labels)
    else:
        mxnet_files(folder, images, labels)


def mxnet_files(folder, images, labels):
    """RecordIO by mxnet: headered, flat, array labels, hostile payloads, and one by its im2rec tool."""
    import mxnet as mx

    flat = [np.frombuffer(image, np.uint8) for image in images + hostile()]
    blob = {"labels": np.array(labels), "sizes": np.array([len(x) for x in flat]), "bytes": np.concatenate(flat)}
    np.savez_compressed(os.path.join(folder, "images.npz"), **blob)
    pack, Header = mx.recordio.pack, mx.recordio.IRHeader

    def writer(name):
        return mx.recordio.MXIndexedRecordIO(
            os.path.join(folder, name + ".idx"), os.path.join(folder, name + ".rec"), "w"
        )

    record = writer("mxnet_flat")
    for key, (image, label) in enumerate(zip(images, labels)):
        record.write_idx(key, pack(Header(0, float(label), key, 0), image))
    record.close()

    record = writer("mxnet_arrays")  # the first of several labels counts
    for key, (image, label) in enumerate(zip(images, labels)):
        record.write_idx(key, pack(Header(0, [float(label), 0.5, 0.25], key, 0), image))
    record.close()

    record = writer("mxnet_headered")
    classes = max(labels) + 1
    first = len(images) + 1
    record.write_idx(0, pack(Header(0, [float(first), float(first + classes)], 0, 0), b""))
    for key, (image, label) in enumerate(zip(images, labels), start=1):
        record.write_idx(key, pack(Header(0, float(label), key, 0), image))
    for label in range(classes):
        keys = [key for key, other in enumerate(labels, start=1) if other == label]
        record.write_idx(first + label, pack(Header(0, [float(keys[0]), float(keys[-1] + 1)], first + label, 0), b""))
    record.close()

    record = writer("mxnet_hostile")
    for key, payload in enumerate(hostile()):
        record.write_idx(key, pack(Header(0, float(key), key, 0), payload))
    record.close()

    with tempfile.TemporaryDirectory() as work:
        for number, (image, label) in enumerate(zip(images, labels)):
            os.makedirs(os.path.join(work, "images", "class%d" % label), exist_ok=True)
            ending = ".png" if image[:4] == b"\x89PNG" else ".jpg"
            with open(os.path.join(work, "images", "class%d" % label, "%02d%s" % (number, ending)), "wb") as file:
                file.write(image)
        tool = os.path.join(os.path.dirname(mx.__file__), "tools", "im2rec.py")
        prefix = os.path.join(work, "im2rec")
        root = os.path.join(work, "images")
        common = [sys.executable, tool, prefix, root]
        subprocess.run([*common, "--list", "--recursive", "--no-shuffle"], check=True)
        subprocess.run([*common, "--pass-through"], check=True)
        for ending in ("rec", "idx", "lst"):
            shutil.copy(prefix + "." + ending, os.path.join(folder, "im2rec." + ending))


def others(folder, images, labels):
    """A shard by webdataset, a parquet and an Arrow file by pyarrow, a parquet file by datasets."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq
    import webdataset as wds

    with wds.TarWriter(os.path.join(folder, "webdataset.tar"), mtime=0.0) as shard:
        for number, (image, label) in enumerate(zip(images, labels)):
            ending = "png" if image[:4] == b"\x89PNG" else "jpg"
            shard.write({"__key__": "sample%02d" % number, ending: image, "cls": label})
    table = pa.table({"jpg": images, "label": labels})
    pq.write_table(table, os.path.join(folder, "pyarrow.parquet"), row_group_size=5)
    with pa.OSFile(os.path.join(folder, "pyarrow.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as out:
        out.write_table(table, max_chunksize=5)
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=["ann", "bob", "cai", "dee"])}
    )
    rows = {"image": [{"bytes": image, "path": None} for image in images], "label": labels}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(os.path.join(folder, "datasets.parquet"))


if __name__ == "__main__":
    main()
