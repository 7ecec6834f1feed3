"""Who was trained on and who was held out, as files of the run folder: a name a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_pfc.data.verification import VerificationSet
from lightning_pfc.storage.whole_files import write_whole

FOLDER = "identities"
_MOST = 1_000_000


def write_identities(folder: Path, data: Any) -> list[Path]:
    """Write ``identities/train.txt`` and one file for each set of held-out identities, where there are names.

    Args:
        folder: of the run.
        data: an :class:`~lightning_pfc.data.IdentityData`.

    Returns:
        The files; none of more than a million names.
    """
    sets = {**data.validation, **data.test}
    names: dict[str, Any] = {"train": data.class_names or ()}
    names |= {name: part.names for name, part in sets.items() if isinstance(part, VerificationSet)}
    written = []
    for name, listed in names.items():
        if 0 < len(listed) <= _MOST:
            path = folder / FOLDER / f"{name}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            with write_whole(path, "w", encoding="utf-8", errors="surrogateescape") as file:
                file.writelines(f"{listed[i]}\n" for i in range(len(listed)))
            written.append(path)
    return written
