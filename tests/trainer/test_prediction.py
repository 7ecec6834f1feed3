"""The best classes of pictures by name: from the command, from Trainer.predict, on one rank and on two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image

from lightning_pfc import PartialFCModule, train
from lightning_pfc.heads.softmax.top_classes import TopClasses
from tests import console
from tests.deployed import write_pictures
from tests.trainer.test_train import variables

WORDS = [
    "experiment=none",
    "data=folder",
    "data.source.image_size=24",
    "data.source.fit=crop",
    "data.source.test_share=0",
    "data.batch_size=12",
    "data.eval_batch_size=5",
    "backbone.embedding_dim=16",
    "+backbone.options.widths=[8,16]",
    "+backbone.options.depths=[0,0]",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "test=false",
    "logger=none",
    "plots=false",
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("predicted") / "people", identities=12, pictures=3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    trained(*WORDS, f"data.source.path={pictures}", "trainer.max_epochs=30", f"output_dir={folder}")
    return folder


def trained(*words: str) -> None:
    """``train`` leaves its process group to the process, which these tests share with others."""
    try:
        train(*words)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def predicted(folder: Path) -> list[list[str]]:
    return [line.split("\t") for line in (folder / "predictions.tsv").read_text().splitlines()]


def test_names_of_pictures_on_one_rank_and_on_two(run: Path, pictures: Path, tmp_path: Path) -> None:
    shown = tmp_path / "shown"
    for number in range(11):
        (shown / f"x{number:02d}.png").parent.mkdir(exist_ok=True)
        with Image.open(pictures / f"id{number:02d}" / "p0.png") as image:
            image.save(shown / f"x{number:02d}.png")
    (shown / "x05.png").write_text("no picture")
    words = [
        *WORDS,
        f"data.source.path={pictures}",
        "fit=false",
        f"ckpt_path={run / 'checkpoints' / 'last.ckpt'}",
        f"predict.source={shown}",
        "predict.k=3",
    ]
    trained(*words, f"output_dir={tmp_path / 'one'}")
    one = predicted(tmp_path / "one")
    assert [Path(line[0]).name for line in one] == [f"x{number:02d}.png" for number in range(11)]
    assert one[5][1:] == ["cannot be read"]
    readable = [number for number in range(11) if number != 5]
    assert sum(one[number][1] == f"id{number:02d}" for number in readable) >= 8
    assert all(len(one[number]) == 7 for number in readable)
    on_two = ["trainer.devices=2", f"output_dir={tmp_path / 'two'}"]
    answer = console.run("lightning_pfc.commands.train", *words, *on_two, env=variables())
    assert answer.returncode == 0, answer.stderr
    two = predicted(tmp_path / "two")
    assert [line[:2] for line in two] == [line[:2] for line in one]
    for number in readable:
        np.testing.assert_allclose(
            [float(x) for x in two[number][2::2]], [float(x) for x in one[number][2::2]], atol=2e-4
        )
    assert not list((tmp_path / "two").glob(".predictions*"))


def test_trainer_predict_tells_classes_when_it_is_asked_to(run: Path) -> None:
    module = PartialFCModule.load_from_checkpoint(run / "checkpoints" / "last.ckpt", weights_only=True)
    images: Any = torch.utils.data.DataLoader(torch.randn(6, 3, 24, 24), batch_size=3)  # type: ignore[arg-type]
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    embeddings = trainer.predict(module, images)
    assert embeddings is not None
    assert embeddings[0].shape == (3, 16)  # type: ignore[union-attr]  # as ever
    module.predict_top = 2
    [first, _] = trainer.predict(module, images) or []
    assert isinstance(first, TopClasses)
    assert first.label.shape == first.score.shape == (3, 2)


@pytest.mark.parametrize(("word", "said"), [("predict.k=0", "predict.k=0"), ("predict.source=none", "none")])
def test_what_is_wrong(run: Path, pictures: Path, tmp_path: Path, word: str, said: str) -> None:
    words = [
        *WORDS,
        f"data.source.path={pictures}",
        "fit=false",
        f"output_dir={tmp_path}",
        f"predict.source={pictures}",
    ]
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        trained(*words, f"ckpt_path={run / 'checkpoints' / 'last.ckpt'}", f"output_dir={tmp_path}", word)
