"""Who may import whom, and that ARCHITECTURE.md shows the package as it is."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests import architecture
from tests.architecture import PACKAGE, ROOT, circles, read_modules, room_of, rooms, way_out

MODULES = read_modules()
OF_LIGHTNING = {"lightning", "lightning_utilities", "pytorch_lightning", "lightning_fabric", "torchmetrics"}
OUTSIDE = OF_LIGHTNING | {"hydra", "omegaconf", "timm"}
BARE = ("buffers", "distributed", "heads", "kernels", "keyed_random", "losses", "optim", "storage")
SMALL = ("heads", "losses")
MAX_LINES, MAX_FUNCTION = 300, 45


def modules_in(*names: str) -> list[str]:
    return [name for name in MODULES if any(f"{name}.".startswith(f"{PACKAGE}.{each}.") for each in names)]


def test_no_module_imports_itself_through_others() -> None:
    assert circles({name: module.inside for name, module in MODULES.items()}) == []


def test_no_room_imports_itself_through_others() -> None:
    assert circles(rooms(MODULES)) == []


@pytest.mark.parametrize("room", BARE)
def test_heads_and_below_never_reach_lightning(room: str) -> None:
    chains = [way_out(MODULES, name, OUTSIDE) for name in modules_in(room)]
    assert chains
    assert [" -> ".join(chain) for chain in chains if chain] == []


def test_heads_and_below_run_without_lightning() -> None:
    """The same, as it happens: each is imported where Lightning cannot be."""
    code = "import importlib, sys\n"
    code += f"for name in {sorted(OUTSIDE)}: sys.modules[name] = None\n"
    gpu = f"{PACKAGE}.kernels.gpu"  # Triton need not be there
    code += f"for name in {[n for n in modules_in(*BARE) if not n.startswith(gpu)]}: importlib.import_module(name)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_the_softmax_knows_no_module_no_sampler_and_no_loss() -> None:
    above = {n for n in modules_in("heads", "losses", "optim", "strategies") if ".heads.softmax" not in n}
    for name in modules_in("heads.softmax"):
        assert not MODULES[name].inside & above, name


def test_losses_know_no_head() -> None:
    for name in modules_in("losses"):
        assert not [other for other in MODULES[name].inside if room_of(other) in ("heads", "optim", "strategies")], name


@pytest.mark.parametrize("name", modules_in(*SMALL))
def test_files_and_functions_stay_small(name: str) -> None:
    text = MODULES[name].path.read_text()
    assert len(text.splitlines()) <= MAX_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            size = (node.end_lineno or 0) - first.lineno + 1 + node.body[0].lineno - node.lineno
            assert size <= MAX_FUNCTION, node.name


def test_the_picture_is_that_of_the_code() -> None:
    made = architecture.page_with(architecture.PAGE.read_text(), architecture.picture(MODULES))
    assert made == architecture.PAGE.read_text(), "draw it anew: python -m tests.architecture"


def test_every_place_that_the_pages_name_exists() -> None:
    for page in (ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", ROOT / "docs" / "glossary.md"):
        for word in page.read_text().split("`")[1::2]:
            if "/" in word and " " not in word and "*" not in word and not word.startswith("["):
                places = [
                    ROOT / word,
                    ROOT / PACKAGE / word,
                    ROOT / PACKAGE / "heads" / word,
                    ROOT / PACKAGE / "optim" / word,
                ]
                assert any(place.exists() for place in places), f"{page.name}: {word}"


# --- the reading itself -----------------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for name, text in {
        "__init__": "",
        "a": "def f():\n    from p.b import g\n",
        "b": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p import c\nelse:\n    import p.d\n",
        "c": "from p.a import f\nimport os.path\n",
        "d": "from . import c\n",
    }.items():
        (tmp_path / "p").mkdir(exist_ok=True)
        (tmp_path / "p" / f"{name}.py").write_text(text)
    return tmp_path


def test_imports_in_functions_count_and_those_for_types_do_not(package: Path) -> None:
    found = read_modules(package, "p")
    assert found["p.a"].inside == {"p.b"}
    assert found["p.b"].inside == {"p.d"}
    assert found["p.b"].outside == {"typing"}
    assert circles({name: module.inside for name, module in found.items()}) == [["p.a", "p.b", "p.c", "p.d"]]
    assert way_out(found, "p.a", {"os"}) == ["p.a", "p.b", "p.d", "p.c", "os"]
    (package / "p" / "d.py").write_text("")
    found = read_modules(package, "p")
    assert circles({name: module.inside for name, module in found.items()}) == []
    assert way_out(found, "p.a", {"os"}) is None
