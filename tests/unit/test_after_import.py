"""Importing the package costs nothing, and ``strategy="pfc"`` is known all the same, in whatever order things come."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_pfc.names.after_import import after_import

KNOWN = "assert 'pfc' in lightning.pytorch.strategies.StrategyRegistry"


PROGRAMS = (
    f"import lightning_pfc, lightning; {KNOWN}",
    f"import lightning, lightning_pfc; {KNOWN}",
    f"import lightning_pfc, lightning.pytorch.trainer; {KNOWN}",
    "import lightning_pfc; from lightning.pytorch import Trainer; "
    "assert type(Trainer(strategy='pfc', accelerator='cpu', devices=1, logger=False).strategy).__name__ == "
    "'PartialFCStrategy'",
    # Modules of ours that import Lightning, each as the first of all.
    f"from lightning_pfc.strategies import PartialFCStrategy; import lightning; {KNOWN}",
    f"import lightning_pfc.checkpoint.load_module, lightning; {KNOWN}",
    f"import lightning_pfc.module, lightning; {KNOWN}",
    f"import lightning_pfc.callbacks, lightning; {KNOWN}",
    "from lightning_pfc import PartialFC, PartialFCModule, PartialFCStrategy, train; import inspect, lightning; "
    "inspect.getsource(lightning)",
)
# One process per program, forked where there is a fork from one that has imported what Lightning itself imports first.
EACH = """
import gc, json, os, subprocess, sys, traceback
gc.disable()
import torch, torchmetrics, torchvision
assert not {"lightning", "lightning_pfc"} & set(sys.modules)
failed = {}
for program in json.loads(sys.argv[1]):
    if not hasattr(os, "fork"):
        done = subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
        if done.returncode:
            failed[program] = done.stderr
        continue
    read, write = os.pipe()
    if os.fork() == 0:
        try:
            exec(program, {"__name__": "__main__"})
        except BaseException:
            os.write(write, traceback.format_exc().encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        said = file.read()
    if said or os.wait()[1]:
        failed[program] = said or "ended otherwise"
print(json.dumps(failed))
"""


def test_the_import_alone_brings_nothing_along(tmp_path: Path) -> None:
    program = "import lightning_pfc, sys; assert not {'torch', 'lightning', 'timm', 'hydra'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("program", PROGRAMS[:2])
def test_either_may_be_the_first_of_all(program: str, tmp_path: Path) -> None:
    """Before torch, too."""
    quick = f"import gc; gc.disable(); {program}"  # a fifth of the time is spent on garbage that there is not
    done = subprocess.run([sys.executable, "-c", quick], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    command = [sys.executable, "-c", EACH, json.dumps(PROGRAMS)]
    where = tmp_path_factory.mktemp("imports")
    done = subprocess.run(command, capture_output=True, text=True, cwd=where, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return answer


@pytest.mark.parametrize("program", PROGRAMS)
def test_order_of_imports_does_not_matter(program: str, failed: dict[str, str]) -> None:
    assert program not in failed, failed[program]


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
    import waited_for  # type: ignore[import-not-found]

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
