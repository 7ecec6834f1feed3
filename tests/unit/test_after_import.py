"""Importing the package costs nothing, and ``strategy="pfc"`` is known all the same, in whatever order things come."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lightning_pfc.after_import import after_import

KNOWN = "assert 'pfc' in lightning.pytorch.strategies.StrategyRegistry"


@pytest.mark.parametrize(
    "program",
    [
        "import lightning_pfc, sys; assert not {'torch', 'lightning', 'timm', 'hydra'} & set(sys.modules)",
        f"import lightning_pfc, lightning; {KNOWN}",
        f"import lightning, lightning_pfc; {KNOWN}",
        f"import lightning_pfc, lightning.pytorch.trainer; {KNOWN}",
        "import lightning_pfc; from lightning.pytorch import Trainer; "
        "assert type(Trainer(strategy='pfc', accelerator='cpu', devices=1, logger=False).strategy).__name__ == "
        "'PartialFCStrategy'",
        # Modules of ours that import Lightning, each as the first of all.
        f"from lightning_pfc.strategies import PartialFCStrategy; import lightning; {KNOWN}",
        f"import lightning_pfc.checkpoint.opening, lightning; {KNOWN}",
        f"import lightning_pfc.module, lightning; {KNOWN}",
        f"import lightning_pfc.callbacks, lightning; {KNOWN}",
        "from lightning_pfc import PartialFC, PartialFCModule, PartialFCStrategy, train; import inspect, lightning; "
        "inspect.getsource(lightning)",
    ],
)
def test_order_of_imports_does_not_matter(program: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_work_is_done_once_and_only_for_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "waited_for.py").write_text("value = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "waited_for", raising=False)
    calls: list[int] = []
    before = list(sys.meta_path)
    after_import("waited_for", lambda: calls.append(sys.modules["waited_for"].value))
    import json.tool

    assert json.tool
    assert calls == []
    import waited_for

    assert calls == [3]
    assert sys.meta_path == before
    assert type(waited_for.__spec__.loader).__name__ == "SourceFileLoader"
    after_import("waited_for", lambda: calls.append(4))
    assert calls == [3, 4]
    monkeypatch.delitem(sys.modules, "waited_for")


def test_unknown_names_are_refused() -> None:
    import lightning_pfc

    with pytest.raises(AttributeError, match="no attribute 'PartialFCHead'"):
        lightning_pfc.PartialFCHead  # noqa: B018
    assert {"PartialFC", "train"} <= set(dir(lightning_pfc))
