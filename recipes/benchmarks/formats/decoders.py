"""CPU time of decoding one JPEG to RGB with the decoders that pip installs, on the same images, one thread.

    python recipes/benchmarks/formats/decoders.py faces/          # a folder with a sub-folder per identity

Each decoder goes over the images several times, the decoders taking turns; the best time of a turn is printed.
A decoder that is not installed is left out.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from lightning_pfc.data.formats import FolderImages, decode

Decoder = Callable[[bytes], object]


def decoders(shape: tuple[int, ...]) -> dict[str, Decoder]:
    """What there is, by name."""
    room = np.empty(shape, np.uint8)
    found: dict[str, Decoder] = {
        "lightning_pfc, into the batch": lambda data: decode(data, out=room),
        "lightning_pfc, new memory": lambda data: decode(data),
        "Pillow": lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")),
    }
    try:
        import simplejpeg

        found["simplejpeg"] = lambda data: simplejpeg.decode_jpeg(data)
        found["simplejpeg, into the batch"] = lambda data: simplejpeg.decode_jpeg(data, buffer=room)
    except ImportError:
        pass
    try:
        import cv2

        cv2.setNumThreads(1)
        found["OpenCV (BGR)"] = lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except ImportError:
        pass
    try:
        from torchvision.io import ImageReadMode, decode_jpeg

        found["torchvision"] = lambda data: decode_jpeg(
            torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB
        )
    except ImportError:
        pass
    return found


def main() -> int:
    """Times all decoders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a folder of images, all of one size")
    parser.add_argument("--count", type=int, default=2000, help="images (%(default)s)")
    parser.add_argument("--turns", type=int, default=5, help="(%(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    images = FolderImages(options.source)
    places = np.random.default_rng(0).permutation(len(images))[: options.count]
    data = [images.read(place) for place in places.tolist()]
    data = [each for each in data if each[:3] == b"\xff\xd8\xff"]
    contenders = decoders(decode(data[0]).shape)
    best = dict.fromkeys(contenders, float("inf"))
    for _ in range(options.turns):
        for name, decoder in contenders.items():
            start = time.process_time()
            for each in data:
                decoder(each)
            best[name] = min(best[name], (time.process_time() - start) / len(data))
    print(f"{len(data)} JPEGs of {len(b''.join(data)) / len(data):.0f} bytes on average: microseconds of CPU each\n")
    for name, seconds in sorted(best.items(), key=lambda item: item[1]):
        print(f"{name:<32}{1e6 * seconds:>7.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
