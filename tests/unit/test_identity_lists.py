"""Lists of identities, a name a line, as editors and people write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_pfc.data.errors import FormatError
from lightning_pfc.evaluation.faces import FaceSet, of_identities

FACES = FaceSet(
    "made up",
    None,
    torch.arange(5.0)[:, None],
    torch.tensor([0, 0, 1, 2, 2]),
    None,
    identities=np.array(["anna", "bert", "ceno"]),
)


@pytest.mark.parametrize("text", ["anna\nceno\n", "\ufeffanna\r\nceno\r\n", "ceno\n\nanna"])
def test_marks_and_ends_of_lines_of_other_systems(tmp_path: Path, text: str) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes(text.encode())
    found = of_identities(FACES, path)
    assert found.embeddings is not None
    assert found.embeddings.flatten().tolist() == [0, 1, 3, 4]


@pytest.mark.parametrize("content", [b"dora\n", b"", b"\xff\xfea\x00", "anna\ndörte\n".encode("latin-1")])
def test_other_lists_are_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes(content)
    with pytest.raises(FormatError, match="names") as found:
        of_identities(FACES, path)
    assert "\n" not in str(found.value)


def test_a_folder_is_no_list(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="is a folder, not an ordinary file"):
        of_identities(FACES, tmp_path)
