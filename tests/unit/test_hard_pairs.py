"""The list of the hardest pairs names the pictures that lie among others, and ``pfc-data`` leaves them out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lightning_pfc.commands.data import main
from lightning_pfc.data import Files
from lightning_pfc.data.verification import VerificationSet
from lightning_pfc.runs.hard_pairs import write_hard_pairs
from lightning_pfc.validation import PairScores


def test_a_wrong_picture_is_named_and_left_out(tmp_path: Path) -> None:
    rng, pictures = np.random.default_rng(0), tmp_path / "pictures"
    for label in range(12):
        (pictures / f"c  {label:02}").mkdir(parents=True)
        for k in range(2 if label == 3 else 4):
            pixels = rng.integers(0, 256, (16, 16), np.uint8)
            Image.fromarray(pixels).save(pictures / f"c  {label:02}" / f"{k}.png")
    data = Files(path=pictures, task="open", test_share=0.5, image_size=16, channels=1).open()
    part = data.test["test"]
    assert isinstance(part, VerificationSet)
    own = torch.eye(12)[part.identity] + 0.01 * torch.randn(len(part.identity), 12, generator=torch.manual_seed(0))
    four = torch.bincount(part.identity) == 4
    wrong = int(four[part.identity].nonzero()[1])  # the second picture of an identity that has four
    own[wrong] = -own[wrong]
    unit = torch.nn.functional.normalize(own)
    score = (unit[part.pairs.first] * unit[part.pairs.second]).sum(1)
    scores = PairScores(score.double(), part.pairs.same, torch.arange(len(score)))
    path = write_hard_pairs(tmp_path, "test", part, scores, own)
    assert path == tmp_path / "hardest_pairs_test.tsv"
    head, *rows = (line.split("\t") for line in path.read_text().splitlines())
    assert head == ["kind", "image", "class", "cosine", "other_class", "name", "other_name"]
    name = part.names[int(part.identity[wrong])]
    first = dict(zip(head, rows[0], strict=True))
    assert (first["kind"], first["class"], first["other_class"]) == ("outlier", name, name)
    assert float(first["cosine"]) < -0.9
    cosines = [float(row[3]) for row in rows if row[0] == "outlier"]
    assert cosines == sorted(cosines)
    merges = [row for row in rows if row[0] == "merge"]
    assert merges
    assert all(row[1] == "" and row[2] != row[4] for row in merges)
    path.write_text("\n".join("\t".join(row) for row in [head, rows[0]]) + "\n")
    target = tmp_path / "left"
    assert main(["convert", str(pictures), str(target), "--to", "folder", "--exclude", str(path), "--quiet"]) == 0
    left = {p.parent.name + "/" + p.name for p in target.rglob("*.png")}
    assert len(left) == 45
    assert len([each for each in left if each.startswith(name)]) == 3
    assert not (pictures / f"{first['name']}").exists() or f"{first['name']}" not in left


def test_pictures_that_are_no_files_have_no_list(tmp_path: Path) -> None:
    part = VerificationSet(torch.zeros(1), None, torch.zeros(1))  # type: ignore[arg-type]
    assert write_hard_pairs(tmp_path, "test", part, None, torch.zeros(1)) is None
