"""Who imports whom in the package, read from its source; and the picture of it in ARCHITECTURE.md.

    python -m tests.architecture          # draws the picture anew

Imports inside functions count; those under ``if TYPE_CHECKING:`` do not, since nothing is imported there.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "lightning_pfc"
PAGE = ROOT / "ARCHITECTURE.md"
BEGIN, END = "<!-- made by python -m tests.architecture -->", "<!-- end of what is made -->"
OF_NO_FOLDER = {
    "start": ("What runs on import, and how Lightning learns the strategy's name.", {"__init__", "registration"}),
    "config": (
        "The configs: where they lie, how they are composed, and what is said when a name does not exist.",
        {"config", "config_words"},
    ),
    "module": (
        "PartialFCModule, and what becomes of its arguments.",
        {"hyperparameters", "module", "training_data"},
    ),
}
"""Rooms of small files: what each is for, and which."""


@dataclass
class Module:
    """A file of the package.

    Attributes:
        path: where it lies.
        inside: the modules of the package that it imports.
        outside: the first words of all others.
    """

    path: Path
    inside: set[str] = field(default_factory=set)
    outside: set[str] = field(default_factory=set)


def read_modules(root: Path = ROOT, package: str = PACKAGE) -> dict[str, Module]:
    """Every module by its full name, with what it imports."""
    found: dict[str, Module] = {}
    for path in sorted((root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = Module(path)
    for name, module in found.items():
        for imported in _imported(name, module.path):
            if imported.split(".")[0] != package:
                module.outside.add(imported.split(".")[0])
                continue
            while imported not in found:  # a name within a module
                imported = imported.rpartition(".")[0]
            module.inside.add(imported)
        module.inside.discard(name)
    return found


def _imported(name: str, path: Path) -> Iterator[str]:
    inside = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in _run(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = inside.split(".")[: len(inside.split(".")) - node.level + 1] if node.level else []
            base += [node.module] if node.module else []
            yield from (".".join([*base, alias.name]) for alias in node.names)


def _run(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only a type checker reads."""
    yield node
    only_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    for child in node.orelse if only_types and isinstance(node, ast.If) else ast.iter_child_nodes(node):
        yield from _run(child)


def circles(arrows: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Groups of nodes of which each is reached from each (Tarjan 1972)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = lowest[node] = len(order)
        stack.append(node)
        for other in sorted(arrows.get(node, ())):
            if other not in order:
                visit(other)
            if other in stack:
                lowest[node] = min(lowest[node], lowest[other])
        if lowest[node] == order[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in sorted(arrows):
        if node not in order:
            visit(node)
    return found


def way_out(modules: Mapping[str, Module], start: str, to: set[str]) -> list[str] | None:
    """The shortest chain of imports from a module to one of the packages ``to``; None if there is none."""
    chains = [[start]]
    seen = {start}
    while chains:
        chain = chains.pop(0)
        module = modules[chain[-1]]
        if reached := sorted(module.outside & to):
            return [*chain, reached[0]]
        for other in sorted(module.inside - seen):
            seen.add(other)
            chains.append([*chain, other])
    return None


# --- rooms ------------------------------------------------------------------------------------------------------------


def room_of(module: str) -> str:
    """The folder of the package that a module lies in, or its own name where it lies in none."""
    name = [*module.split("."), "__init__"][1]
    return next((room for room, (_, files) in OF_NO_FOLDER.items() if name in files), name)


def rooms(modules: Mapping[str, Module]) -> dict[str, set[str]]:
    """Which rooms each room imports."""
    found: dict[str, set[str]] = {}
    for name, module in modules.items():
        found.setdefault(room_of(name), set()).update(room_of(other) for other in module.inside)
    for room, others in found.items():
        others.discard(room)
    return found


def floors(arrows: Mapping[str, set[str]]) -> dict[str, int]:
    """How high each room stands: above all that it imports."""
    found: dict[str, int] = {}
    while len(found) < len(arrows):
        ready = [r for r, others in arrows.items() if r not in found and others <= found.keys()]
        if not ready:
            raise ValueError(f"rooms import each other: {circles(arrows)}")
        found |= {room: 1 + max((found[other] for other in arrows[room]), default=-1) for room in ready}
    return found


def needed(arrows: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The arrows that do not follow from others."""

    def below(room: str) -> set[str]:
        return arrows[room].union(*(below(other) for other in arrows[room]))

    return {
        room: {o for o in others if not any(o in below(p) for p in others - {o})} for room, others in arrows.items()
    }


def picture(modules: Mapping[str, Module]) -> str:
    """What stands between the marks in ARCHITECTURE.md: a diagram, and a line for each room."""
    arrows = rooms(modules)
    height = floors(arrows)
    lines = ["```mermaid", "flowchart TB"]
    for floor in sorted(set(height.values()), reverse=True):
        lines += [f"  subgraph floor{floor}[ ]", "    direction LR"]
        lines += [f"    {room}" for room in sorted(height) if height[room] == floor] + ["  end"]
    lines += [f"  {room} --> {other}" for room, others in sorted(needed(arrows).items()) for other in sorted(others)]
    lines += ["```", "", "| floor | room | what it is | imports |", "| --- | --- | --- | --- |"]
    for room in sorted(height, key=lambda room: (-height[room], room)):
        imports = ", ".join(f"`{other}`" for other in sorted(arrows[room]))
        lines.append(f"| {height[room]} | `{room}` | {_what(modules, room)} | {imports} |")
    return "\n".join(lines)


def _what(modules: Mapping[str, Module], room: str) -> str:
    if room in OF_NO_FOLDER:
        return OF_NO_FOLDER[room][0]
    text = ast.get_docstring(ast.parse(modules[f"{PACKAGE}.{room}"].path.read_text(encoding="utf-8"))) or ""
    return text.split("\n\n")[0].replace("\n", " ").replace("|", "\\|")


def page_with(text: str, made: str) -> str:
    """ARCHITECTURE.md with another picture."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{made}\n{END}{rest.split(END)[1]}"


def main() -> None:
    """Draw the picture anew."""
    PAGE.write_text(page_with(PAGE.read_text(encoding="utf-8"), picture(read_modules())), encoding="utf-8")


if __name__ == "__main__":
    main()
