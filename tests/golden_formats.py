"""Data sets that the tools of others wrote, and what is in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "golden" / "formats"


def golden() -> tuple[list[bytes], np.ndarray, list[bytes]]:
    """Images, their labels, and the payloads that hold the magic; as benchmarks/formats/golden.py wrote them."""
    with np.load(GOLDEN / "images.npz") as file:
        labels, blob = file["labels"], file["bytes"].tobytes()
        ends = np.cumsum(file["sizes"]).tolist()
    pieces = [blob[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    return pieces[: len(labels)], labels, pieces[len(labels) :]
