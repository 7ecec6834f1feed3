"""YAML of others: thirty lines that name each other twice over are refused in no time, by every reader."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from lightning_pfc.config_words import config_dir
from lightning_pfc.data.errors import FormatError
from lightning_pfc.data.formats import open_images
from lightning_pfc.interchange.other_networks import _color_space
from lightning_pfc.runs.errors import ExportError
from lightning_pfc.runs.run_folder import Run
from lightning_pfc.storage.yaml_texts import check_yaml, parse_yaml

DOUBLED = "a0: &a0 [x, y]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
MERGED = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}], k{i}: 1}}\n" for i in range(1, 60))
LONG = f"a: &a {'x' * 100_000}\nb: [{', '.join(['*a'] * 1000)}]\n"
DEEP = "[" * 5000
HOSTILE = {"doubled": DOUBLED, "merged": MERGED, "long": LONG, "deep": DEEP, "itself": "&a [*a, *a]"}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", HOSTILE)
def test_no_reader_follows_it(name: str, tmp_path: Path) -> None:
    text = HOSTILE[name]
    for file in ("config.yaml", "README.md"):
        (tmp_path / file).write_text(f"---\n{text}\n---\n" if file.endswith(".md") else text)
    if name != "itself":
        with pytest.raises(ValueError, match=r"without end|no YAML"):
            check_yaml(text)
        with pytest.raises(ExportError, match=r"config\.yaml.*(without end|no YAML)"):
            _ = Run.config.func(_Folder(tmp_path))  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match=r"config\.yaml is no YAML"):
            _color_space(tmp_path / "config.yaml")
    with pytest.raises(FormatError):
        open_images(tmp_path, "huggingface")


class _Folder:
    def __init__(self, folder: Path) -> None:
        self.folder = folder


def test_our_own_are_read_as_ever() -> None:
    for path in config_dir().rglob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        assert parse_yaml(text) == yaml.safe_load(text)
    assert parse_yaml("a: &a [1, 2]\nb: *a\nc: {<<: {x: 1}}") == {"a": [1, 2], "b": [1, 2], "c": {"x": 1}}
    assert OmegaConf.create("a: 1e-3") == {"a": 1e-3}
