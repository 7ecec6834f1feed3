"""How well a detector's five points are found, and what alignment by them costs: on pictures that are aligned already.

    python recipes/faces/detector_error.py DETECTOR.onnx ALIGNED/ [MODEL]

Each picture is pasted into a canvas by a known similarity transform (another size, turned) and blurred; so where its
five points went is known. With MODEL (an export, a run or an ONNX file), pairs of the pictures as they are and as they
come back from the canvas are compared: the true accept rate of both, and the difference with its interval by identity.
"""

from __future__ import annotations

import sys
from typing import Any

import cv2
import numpy as np
import torch

from lightning_pfc.data.curation.alignment import TEMPLATE
from lightning_pfc.data.formats import open_images
from lightning_pfc.data.pictures.decoding import decode
from lightning_pfc.data.verification import make_pairs
from lightning_pfc.deploy.embedders import open_embedder
from lightning_pfc.deploy.vectors import unit
from lightning_pfc.faces import FaceCutter, NoFaceError, open_detector
from lightning_pfc.metrics.functional import tar_at_far

CANVAS, PICTURES, PAIRED = 480, 100, 1000
CASES = [(size, 0, 0) for size in (40, 60, 112, 224)]
CASES += [(112, angle, 0) for angle in (15, 30, 45)] + [(112, 0, blur) for blur in (1, 2, 4)]


def pasted(pixels: np.ndarray, size: int, angle: float, blur: float) -> tuple[np.ndarray, np.ndarray]:
    """A canvas with the picture in its middle, and where its five points are."""
    matrix = cv2.getRotationMatrix2D((56, 56), angle, size / 112)
    matrix[:, 2] += CANVAS / 2 - 56
    way = cv2.INTER_AREA if size < 112 else cv2.INTER_LINEAR
    canvas = cv2.warpAffine(pixels, matrix, (CANVAS, CANVAS), flags=way, borderValue=(90, 90, 90))
    if blur:
        canvas = cv2.GaussianBlur(canvas, (0, 0), blur)
    return canvas, TEMPLATE @ matrix[:, :2].T + matrix[:, 2]


def main() -> None:
    """See the top of the file."""
    detector = open_detector(sys.argv[1])
    images = open_images(sys.argv[2])
    some = [decode(images.read(int(i)), channels=3) for i in np.linspace(0, len(images) - 1, PICTURES)]
    print("| edge of the face | turned by | blur | found | median error of the points | 90 % below |")
    print("| --- | --- | --- | --- | --- | --- |")
    for size, angle, blur in CASES:
        errors = []
        for pixels in some:
            canvas, points = pasted(pixels, size, angle, blur)
            if found := detector(canvas):
                errors.append(np.linalg.norm(found[0].points - points, axis=1))
        middle, high = np.quantile(np.concatenate(errors), [0.5, 0.9]) if errors else (np.nan, np.nan)
        share = f"{100 * len(errors) / len(some):.0f} %"
        print(f"| {size} | {angle} deg | {blur} px | {share} | {middle:.1f} px | {high:.1f} px |", flush=True)
    if len(sys.argv) > 3:
        compare(detector, images, sys.argv[3])


def compare(detector: Any, images: Any, model: str) -> None:
    """True accept rates of the pictures as they are, and found again in canvases."""
    embedder, cutter = open_embedder(model), FaceCutter(detector)
    several = np.flatnonzero(np.bincount(images.labels)[images.labels] > 1)[:PAIRED]
    rng, rows, kept = np.random.default_rng(0), [], []
    for place in several.tolist():
        pixels = decode(images.read(place), channels=3)
        canvas, _ = pasted(pixels, int(rng.integers(90, 200)), float(rng.uniform(-20, 20)), 0)
        try:
            again = cutter.pixels(canvas)[0].pixels
        except NoFaceError:
            continue
        both = np.stack([embedder.prepare(pixels), embedder.prepare(again)])
        rows.append(unit(embedder.embed_pixels(both)))
        kept.append(place)
    embeddings, labels = torch.from_numpy(np.stack(rows)), images.labels[kept]
    pairs = make_pairs(labels, np.arange(len(labels)), seed=0, impostors=100_000)
    scores = [(embeddings[pairs.first, way] * embeddings[pairs.second, way]).sum(1).double() for way in (0, 1)]
    rates = [tar_at_far(score, pairs.same, 1e-3).tar for score in scores]
    found = f"{100 * rates[0]:.2f} % as they are, {100 * rates[1]:.2f} % found again"
    print(f"{len(kept)} of {len(several)} found; true accept rate at FAR 0.1 %: {found}")
    owner = torch.from_numpy(labels)[pairs.first]
    differences = []
    for _ in range(500):  # identities are drawn, with all their genuine pairs; thresholds stay
        drawn = rng.choice(np.unique(labels), len(np.unique(labels)))
        weight = torch.bincount(torch.from_numpy(drawn), minlength=int(labels.max()) + 1)
        weights = weight[owner[pairs.same]].double()
        accepted = [score[pairs.same] > limit(score, pairs.same) for score in scores]
        differences.append(float(((accepted[1].double() - accepted[0].double()) * weights).sum() / weights.sum()))
    low, high = np.quantile(differences, [0.025, 0.975])
    print(
        f"difference {100 * (rates[1] - rates[0]):+.2f} points, 95 % by identity {100 * low:+.2f} .. {100 * high:+.2f}"
    )


def limit(score: torch.Tensor, same: torch.Tensor) -> float:
    """The score above which one in a thousand impostor pairs lies."""
    others = score[~same].sort(descending=True).values
    return float(others[len(others) // 1000])


if __name__ == "__main__":
    main()
