"""The model card: what a model is, what it was measured to do, and what it is not for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_pfc.deploy.description import FILE, ModelDescription
from lightning_pfc.runs.thresholds import Threshold

_USE = """```python
from lightning_pfc.deploy import Recogniser

recogniser = Recogniser.load("{folder}")
rows = recogniser.embed(["a.png", "b.png"])            # (2, {width}) float32
score, same, far = recogniser.compare("a.png", "b.png")
```"""

_LIMITS = """A score says how alike two pictures are to this network; it is no proof of identity. The figures above hold
for pictures of the kind they were measured on. On others (another camera, age, pose, lighting, group of people) rates
differ, sometimes by factors: calibrate on pictures of your own before a threshold decides anything. The network says
nothing about whether a picture is genuine, and has no notion of a picture that shows nothing of its kind."""


def write_card(path: Path, name: str, about: ModelDescription, *, license: str) -> None:
    """Write the card, Markdown with the head that the Hugging Face hub reads.

    Args:
        path: the file.
        name: of the model.
        about: the model.
        license: an identifier of the hub, or ``"unknown"``.
    """
    parts = [
        _head(license),
        f"# {name}",
        _summary(about),
        "## Use",
        _USE.format(folder=name, width=about.model.width),
        f"`{FILE}` says how pictures are made ready and what each file is; any ONNX runtime takes `{about.model.file}`."
        if about.model.kind == "onnx"
        else f"`{FILE}` says how pictures are made ready and what each file is.",
        "## Trained on",
        _table(("", ""), [(key.replace("_", " "), _text(value)) for key, value in about.trained_on.items()]),
        "## Figures",
        _figures(about.checks.get("figures", {})),
        _thresholds(list(about.thresholds.values())),
        "## Intended use and limits",
        _LIMITS,
        "## Licence",
        f"`{license}`"
        if license != "unknown"
        else "Not stated by whoever exported the model. The data it was trained on may bind it.",
    ]
    path.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")


def _head(license: str) -> str:
    lines = ["---", f"license: {license}", "library_name: lightning-pfc", "pipeline_tag: image-feature-extraction"]
    return "\n".join([*lines, "tags:", "- metric-learning", "- identity-recognition", "---"])


def _summary(about: ModelDescription) -> str:
    channels, height, width = about.preprocessing.image_shape
    kind = "grey" if channels == 1 else "colour"
    extra = [
        "adds the embedding of the mirror image" if about.model.flip == "sum" else "",
        "gives embeddings of length one" if about.model.unit else "",
    ]
    more = " and ".join(part for part in extra if part)
    return (
        f"A network that turns a {kind} picture of {width} x {height} pixels into {about.model.width} numbers, so that "
        f"pictures of one identity lie close together by the cosine. It computes in {about.model.precision}"
        f"{f', {more}' if more else ''}."
    )


def _figures(figures: Mapping[str, Any]) -> str:
    if not figures:
        return "None: the pictures at hand when it was exported had no identities to measure with."
    rows = [
        (
            name,
            f"{100 * entry['value']:.2f} %",
            f"{100 * entry['interval'][0]:.2f} .. {100 * entry['interval'][1]:.2f} %",
        )
        for name, entry in figures.items()
    ]
    return _table(("on identities that were not trained", "value", "95 %, by identity"), rows)


def _thresholds(thresholds: list[Threshold]) -> str:
    if not thresholds:
        return "No threshold: the model was never calibrated."
    rows = [
        (f"`{t.name}`", f"{t.value:.4f}", f"{t.rate:.1e}", f"{t.interval[0]:.1e} .. {t.interval[1]:.1e}", t.chosen_on)
        for t in thresholds
    ]
    return _table(("threshold", "cosine above", "false accepts", "on a new set", "chosen on"), rows)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines
    )


def _text(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and value >= 10_000 else str(value)
