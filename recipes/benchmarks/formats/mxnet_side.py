"""The part of roundtrip.py that runs where mxnet is installed (Python 3.8 will do).

mxnet_side.py read FILE.rec headered|flat     prints `label sha256` of every image, and what ImageRecordIter counts
mxnet_side.py write FOLDER PLAIN.npz          writes headered.rec and flat.rec with the images of an .npz
"""

# This file also runs on Python 3.8, for mxnet.
# ruff: noqa: ANN001, ANN201, ANN202, B905

import hashlib
import os
import sys

import mxnet as mx
import numpy as np


def read(path, layout):
    record = mx.recordio.MXIndexedRecordIO(path[:-4] + ".idx", path, "r")
    keys = sorted(record.keys)
    if layout == "headered":
        header, _ = mx.recordio.unpack(record.read_idx(0))
        keys = range(1, int(header.label[0]))
    for key in keys:
        header, image = mx.recordio.unpack(record.read_idx(key))
        label = np.atleast_1d(header.label)[0]
        print(int(label), hashlib.sha256(image).hexdigest())


def write(folder, plain):
    with np.load(plain) as file:
        labels, blob, ends = file["labels"].tolist(), file["bytes"].tobytes(), np.cumsum(file["sizes"]).tolist()
    images = [blob[start:end] for start, end in zip([0, *ends], ends)]
    Header, pack = mx.recordio.IRHeader, mx.recordio.pack

    def writer(name):
        return mx.recordio.MXIndexedRecordIO(
            os.path.join(folder, name + ".idx"), os.path.join(folder, name + ".rec"), "w"
        )

    flat = writer("flat")
    for key, (label, image) in enumerate(zip(labels, images)):
        flat.write_idx(key, pack(Header(0, float(label), key, 0), image))
    flat.close()
    headered = writer("headered")
    first, classes = len(images) + 1, max(labels) + 1
    headered.write_idx(0, pack(Header(0, [float(first), float(first + classes)], 0, 0), b""))
    for key, (label, image) in enumerate(zip(labels, images), 1):
        headered.write_idx(key, pack(Header(0, float(label), key, 0), image))
    for label in range(classes):
        keys = [key for key, other in enumerate(labels, 1) if other == label]
        both = [float(keys[0]), float(keys[-1] + 1)]
        headered.write_idx(first + label, pack(Header(0, both, first + label, 0), b""))
    headered.close()


if __name__ == "__main__":
    {"read": read, "write": write}[sys.argv[1]](*sys.argv[2:])
