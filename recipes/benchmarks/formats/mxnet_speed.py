"""The part of loading_speed.py that runs where mxnet is installed: mxnet_speed.py KIND FILE.rec EPOCHS BATCH."""

# This file also runs on Python 3.8, for mxnet.

import json
import sys
import time

import mxnet as mx

kind, path, epochs, batch = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
common = {"path_imgrec": path, "path_imgidx": path[:-4] + ".idx", "data_shape": (3, 112, 112), "batch_size": batch}
if kind == "mxnet":
    loader = mx.io.ImageRecordIter(
        shuffle=True, rand_mirror=True, mean_r=127.5, mean_g=127.5, mean_b=127.5, scale=1 / 127.5, preprocess_threads=1,
        verbose=False, **common
    )  # fmt: skip
else:
    loader = mx.image.ImageIter(shuffle=True, rand_mirror=True, mean=True, std=True, **common)
figures = []
for _ in range(epochs):
    loader.reset()
    start = time.perf_counter()
    seen = 0
    for item in loader:
        item.data[0].wait_to_read()
        seen += batch - (item.pad or 0)
    figures.append(seen / (time.perf_counter() - start))
print(json.dumps(figures[1:]))
