"""``pfc-train data=folder data.source.path=SET/train`` with the words given, timed, and the test's embeddings.

The time is that of the choices, the test of changes among them, and of the training.

python as_it_comes.py SET SEED OUT.npz WORDS...
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray

from lightning_pfc import PartialFCModule, train
from lightning_pfc.commands import training
from lightning_pfc.data import Files


def main(place: Path, seed: int, out: Path, words: list[str]) -> None:
    used = 0.0

    def timed(work: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            nonlocal used
            start = time.process_time()
            result = work(*arguments, **options)
            used += time.process_time() - start
            return result

        return called

    L.Trainer.fit = timed(L.Trainer.fit)  # type: ignore[method-assign]
    training.choose = timed(training.choose)
    with tempfile.TemporaryDirectory() as folder:
        own = ["data=folder", f"data.source.path={place / 'train'}", f"seed={seed}", f"output_dir={folder}/run"]
        quiet = ["plots=false", "trainer.enable_progress_bar=false", "trainer.enable_model_summary=false"]
        result = train(*own, *quiet, *words)
        names = {"": result.get("best_checkpoint", "last.ckpt"), "last_": "last.ckpt"}
        found = {key: embedded(Path(folder) / "run" / "checkpoints" / name, place) for key, name in names.items()}
    arrays: dict[str, Any] = {key + name: value for key, pair in found.items() for name, value in pair.items()}
    np.savez(out, **arrays)
    numbers = {name: value for name, value in result["metrics"].items() if name.startswith(("val/", "test/"))}
    out.with_suffix(".json").write_text(json.dumps({"seconds": used, "metrics": numbers, "steps": result["steps"]}))


def embedded(checkpoint: Path, place: Path) -> dict[str, NDArray[Any]]:
    """Embeddings of the test pictures, and their labels."""
    model = PartialFCModule.load_from_checkpoint(checkpoint, weights_only=True).eval()
    record = model.preprocessing
    assert record is not None
    test = Files(path=place / "test", image_size=record.size, channels=record.channels, fit=record.fit, check=0).open()
    parts = np.array_split(np.arange(len(test.labels)), len(test.labels) // 500 + 1)
    with torch.no_grad():
        rows = [record.embed(model, test.train.fetch(places).float() / 127.5 - 1) for places in parts]
    return {"emb": torch.cat(rows).numpy(), "label": np.asarray(test.labels)}


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
