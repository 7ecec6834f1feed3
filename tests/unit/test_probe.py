"""Whether a change keeps an identity is found out, the same on every rank, and only where nobody has said it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_pfc.config import compose
from lightning_pfc.data.formats.base import EncodedImages
from lightning_pfc.runs import choices
from lightning_pfc.runs.choice_rules import to_see
from lightning_pfc.runs.probe import Change, Found, find_out

HALF_AS_FAR = {"name": "affine_flip", "strength": 0.5}


class Shapes(EncodedImages):
    """Identities are patterns of 4 x 4 fields, each picture with other noise; symmetrical ones, or none is."""

    def __init__(self, symmetrical: bool, identities: int = 40, each: int = 8) -> None:
        rng = np.random.default_rng(0)
        self.source = "shapes"
        self.labels = np.repeat(np.arange(identities), each)
        self.identities = np.arange(identities)
        fields = rng.uniform(0, 200, (identities, 4, 4))
        fields = (fields + fields[:, :, ::-1]) / 2 if symmetrical else fields
        pictures = fields.repeat(8, 1).repeat(8, 2)[self.labels]
        self.pictures = np.clip(pictures + rng.normal(0, 40, pictures.shape), 0, 255).astype(np.uint8)

    def read(self, index: int) -> bytes:
        """As PNG, but one."""
        if index == 3:
            return b"broken"
        out = io.BytesIO()
        Image.fromarray(self.pictures[index]).save(out, "png")
        return out.getvalue()

    def locate(self, index: int) -> str:
        """Its number."""
        return str(index)


@pytest.mark.parametrize("symmetrical", [True, False])
@pytest.mark.parametrize(("identities", "each", "asked"), [(40, 8, 10), (6, 60, 6)], ids=["of others", "of the same"])
def test_mirrored_pictures_keep_an_identity_where_they_do(
    symmetrical: bool, identities: int, each: int, asked: int
) -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(5)
    first = torch.rand(1)
    torch.manual_seed(5)
    found = find_out(Shapes(symmetrical, identities, each), (32, 32), 1, 1500)
    assert torch.rand(1) == first  # nobody else's random numbers were taken
    assert torch.get_num_threads() == threads
    assert found is not None
    assert found.identities == asked
    assert ("flip" in found.kept) == symmetrical, found.told()
    assert found.alike > 0.8
    assert f"{found.alike:.0%}, as two of one identity" in found.told()


def test_the_same_whatever_was_drawn_before() -> None:
    each = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found = find_out(Shapes(symmetrical=False, identities=8), (32, 32), 1, 640)
        assert found is not None
        each.append((found.alike, found.changes))
    assert each[0] == each[1]


def test_nothing_is_said_where_nothing_was_learned() -> None:
    shapes = Shapes(symmetrical=False)
    shapes.labels = np.random.default_rng(1).permutation(shapes.labels)
    assert find_out(shapes, (32, 32), 1, 640) is None
    assert find_out(Shapes(symmetrical=False, identities=7), (32, 32), 1, 64) is None
    assert find_out(Shapes(symmetrical=False, identities=2, each=60), (32, 32), 1, 64) is None
    shapes.read = lambda index: b"broken"  # type: ignore[method-assign]
    assert find_out(shapes, (32, 32), 1, 64) is None


@pytest.mark.parametrize(
    ("changed", "augment"),
    [((0.9, 0.9), HALF_AS_FAR), ((0.9, 0.7), "affine"), ((0.7, 0.9), "flip"), ((0.7, 0.7), "none")],
)
def test_what_follows(changed: tuple[float, float], augment: str | dict[str, Any]) -> None:
    affine, flip = changed
    itself = {"affine": Change(affine, 0.9), "flip": Change(flip, 0.9)}
    known = {"affine": Change(0.9, affine - 0.1), "flip": Change(0.9, flip - 0.1)}
    assert [Found(0.8, changes, 20, 3.0).augment for changes in (itself, known)] == [augment] * 2


def test_a_small_share_of_the_run() -> None:
    assert [to_see(total, epochs) for total, epochs in ((3000, 40), (3000, 6), (36, 40), (10**6, 6), (4000, None))] == [
        8000,
        3000,
        360,
        8000,
        1000,
    ]


def test_not_asked_where_it_was_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shapes, asked = Shapes(symmetrical=True, identities=12), []
    for place, label in enumerate(shapes.labels.tolist()):
        folder = tmp_path / f"{label:02}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(shapes.pictures[place]).save(folder / f"{place}.png")

    def found(*arguments: Any) -> Found:
        asked.append(arguments[1:])
        return Found(0.8, {"affine": Change(0.7, 0.9), "flip": Change(0.9, 0.8)}, 4, 1.0)

    monkeypatch.setattr("lightning_pfc.runs.probe.find_out", found)

    def augment(*words: str) -> Any:
        typed = ["data=folder", f"data.source.path={tmp_path}", f"output_dir={tmp_path / 'run'}", *words]
        config = compose(typed)
        made = {choice.key: choice for choice in choices.choose(config, typed)}
        if asked:
            assert "mirrored 90% like itself and 80% known to others; 80%" in made["data.augment"].why
        return config.data.augment

    assert augment("data.kind=characters") is None
    assert augment("data.augment=none") == "none"
    assert augment("fit=false") == "affine"
    assert asked == []
    assert [augment(), augment("data.source.image_size=16"), augment("data.source.background=black")] == ["flip"] * 3
    assert asked == [((32, 32), 1, 3000, "none"), ((16, 16), 1, 3000, "none"), ((32, 32), 1, 3000, "black")]
