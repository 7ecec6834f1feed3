"""The configs of the formats: they compose on the folder's, and the data module they make yields the data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate

from lightning_pfc.config import compose
from lightning_pfc.data.curation.convert import convert
from lightning_pfc.data.formats import FolderImages
from tests.golden_formats import golden


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images, labels, _ = golden()
    root = tmp_path_factory.mktemp("faces") / "folder"
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        path = root / f"person{label}" / f"{number}.img"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    return root


@pytest.mark.parametrize("name", ["folder", "recordio", "list", "parquet", "webdataset", "huggingface"])
def test_every_format_trains_from_its_config(name: str, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip(
        {"parquet": "pyarrow", "webdataset": "webdataset", "huggingface": "datasets"}.get(name, "numpy")
    )
    path = tmp_path / "data"
    convert(FolderImages(folder), path, name, progress=False)
    if name == "huggingface":  # what a user of the library has
        import datasets

        datasets.load_dataset(str(path), cache_dir=str(tmp_path / "cache")).save_to_disk(str(tmp_path / "saved"))
        path = tmp_path / "saved"
    given = path / "list.tsv" if name == "list" else path
    source = {"path": given, "image_size": 16, "task": "closed", "test_share": 0}
    overrides = [f"data.source.{key}={value}" for key, value in source.items()]
    config = compose([f"data={name}", "data.batch_size=4", *overrides])
    module = instantiate(config.data)
    module.prepare_data()
    module.setup("fit")
    assert (module.num_classes, module.num_images, module.input_size) == (4, 12, (3, 16, 16))
    assert [str(module.data.class_names[k]) for k in range(4)] == [f"person{k}" for k in range(4)]
    seen = [label for _, labels in module.train_dataloader() for label in labels.tolist()]
    assert np.bincount(seen).tolist() == [3, 3, 3, 3]
