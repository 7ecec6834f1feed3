"""No page names a command, a key, a flag or a script that does not exist."""

from __future__ import annotations

import argparse
import importlib
import io
import re
import shlex
from contextlib import redirect_stderr
from pathlib import Path

import pytest

from lightning_pfc.config import compose
from tests.docs import ROOT, Command, own_commands, shell_commands, spans
from tests.surface import keys

HYDRA = {"pfc-train": "train", "pfc-eval": "eval"}
OWN = sorted({command.words: command for command in own_commands()}.values(), key=str)
OF_OTHERS = {
    "--noproxy",  # flags of Hydra, curl, SLURM and torchrun
    *("--config-dir", "--http2"),
    *("--export", "--kill-on-bad-exit", "--nodes", "--resv-ports", "--signal", "--tier"),
    *("--max-restarts", "--nproc-per-node", "--rdzv-id"),
    *("--model.loss", "--model.loss.name", "--model.loss.margin"),  # of LightningCLI
}


@pytest.mark.parametrize("command", [c for c in OWN if c.words[0] in HYDRA], ids=str)
def test_words_make_a_config(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key, group or option that does not exist is an error of composing."""
    monkeypatch.setenv("PFC_DATA_ROOT", "/data/faces")
    words, folders = list(command.words[1:]), []
    if "--config-dir" in words:  # a folder of the reader's own
        place = words.index("--config-dir")
        folders = [tmp_path]
        (tmp_path / "loss").mkdir()
        (tmp_path / "loss" / "mine.yaml").write_text("name: ArcFace\n")
        del words[place : place + 2]
    flags = [word for word in words if word.startswith("-")]
    assert set(flags) <= {"-m", "--help"}
    words = [word for word in words if word not in flags and not word.endswith("=...")]
    if "-m" in flags:  # a sweep: its first run
        words = [re.sub(r"^(\S+?=[^,\[]*),[^\[\]]*$", r"\1", word) for word in words]
    compose(words, config_name=HYDRA[command.words[0]], config_dirs=folders)


@pytest.mark.parametrize("command", [c for c in OWN if c.words[0] not in HYDRA], ids=str)
def test_words_are_parsed(command: Command) -> None:
    """Those of a console block whole; in a sentence, where some may be left out, each that stands there."""
    parser = _parser(command.words[0])
    if command.words in {each.words for each in shell_commands()}:
        said = io.StringIO()
        try:
            with redirect_stderr(said):
                parser.parse_args(command.words[1:])
        except SystemExit:
            pytest.fail(said.getvalue())
        return
    subcommands = _subparsers(parser)
    if subcommands and len(command.words) > 1:
        assert command.words[1] in subcommands
        parser = subcommands[command.words[1]]
    assert {word for word in command.words if word.startswith("--")} <= set(parser._option_string_actions)


def test_flags_in_sentences_are_those_of_a_command() -> None:
    known: set[str] = set()
    for name in ("ckpt", "data", "embed", "export", "gallery", "plan", "serve"):
        parser = _parser(f"pfc-{name}")
        for each in (parser, *_subparsers(parser).values()):
            known |= set(each._option_string_actions)
    scripts = "".join(path.read_text() for path in (ROOT / "recipes").rglob("*.py"))
    known |= set(re.findall(r'"(--[a-z][\w-]*)"', scripts))
    found = {word.split("=")[0] for _, text in spans() for word in text.split() if re.match(r"--[a-z]", word)}
    assert len(found) > 40
    assert found - known - OF_OTHERS == set()


def test_scripts_exist_and_know_their_flags() -> None:
    """``python recipes/...``, in lines and in blocks."""
    lines = [text for _, text in spans()] + [" ".join(command.words) for command in shell_commands()]
    lines = [line for line in lines if line.startswith("python recipes/")]
    assert len(lines) > 20
    for line in lines:
        words = shlex.split(line)
        script = ROOT / words[1]
        assert script.is_file(), line
        sources = "".join(path.read_text() for path in script.parent.glob("*.py"))
        assert {word.split("=")[0] for word in words if word.startswith("--")} <= set(
            re.findall(r'"(--[a-z][\w-]*)"', sources)
        ), line


def test_files_of_the_package_exist_where_a_page_says() -> None:
    """``lightning_pfc/...py`` on any page; in ARCHITECTURE.md also paths below the package, such as heads/batch.py."""
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "recipes").rglob("*.md")]
    pages = {page: page.read_text(encoding="utf-8") for page in found if page.name != "CHANGELOG.md"}
    named = [(page, name) for page, text in pages.items() for name in re.findall(r"lightning_pfc/[\w/]+\.py", text)]
    architecture = ROOT / "ARCHITECTURE.md"
    below = re.findall(r"`((?!tests/|docs/)\w+/[\w/]+\.py)`", pages[architecture])
    named += [
        (architecture, f"lightning_pfc/{name}") for name in below if not name.startswith(("sampling/", "softmax/"))
    ]
    assert len(named) > 40
    assert [(page.name, name) for page, name in named if not (ROOT / name).exists()] == []


def test_keys_in_sentences_exist() -> None:
    """``group.key=value`` names a key, and ``group=option`` a choice."""
    lines = list(keys())
    known = {line.removeprefix("key ") for line in lines if line.startswith("key ")}
    choices: dict[str, set[str]] = {}
    for line in lines:
        if line.startswith("group "):
            group, _, option = line.removeprefix("group ").partition("=")
            choices.setdefault(group, set()).add(option)
    wrong = []
    for page, text in spans():
        if not (match := re.fullmatch(r"([+~]{0,2})([a-z_]+(?:[./][a-z_0-9]+)*)=(\S*)", text)):
            continue
        added, key, value = match.groups()
        if "." in key and not added and key not in known:
            wrong.append((page, text))
        if key in choices and re.fullmatch(r"[a-z_0-9]+", value) and value not in choices[key]:
            wrong.append((page, text))
    assert not wrong


def _parser(name: str) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = importlib.import_module(f"lightning_pfc.commands.{name[4:]}")._parser()
    return made


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found[0].choices) if found else {}
