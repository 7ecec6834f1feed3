"""What a run says of its figures, and that its lists of identities are taken by the evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist
from PIL import Image

from lightning_pfc import train
from lightning_pfc.commands.eval import evaluate

NET = ["+backbone.options.widths=[8,16]", "+backbone.options.depths=[0,0]", "trainer.accelerator=cpu"]


@pytest.fixture(autouse=True)
def own_group(no_leaked_process_group: None) -> Iterator[None]:
    """The strategy makes a group of one process, which a Trainer leaves behind."""
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def pictures(path: Path, identities: int, *, right: bool) -> Path:
    """Six noisy pictures of each pattern; wrong labels are drawn."""
    rng = np.random.default_rng(0)
    for name in range(identities):
        (path / f"p{name:02}").mkdir(parents=True)
        for place in range(6):
            pattern = name if right else int(rng.integers(identities))
            pixels = np.random.default_rng(pattern).integers(0, 200, (16, 16)) + rng.integers(0, 55, (16, 16))
            Image.fromarray(pixels.astype(np.uint8)).save(path / f"p{name:02}" / f"{place}.png")
    return path


@pytest.mark.parametrize("right", [True, False])
def test_a_run_says_what_its_figures_are_worth(right: bool, tmp_path: Path) -> None:
    source, run = pictures(tmp_path / "pictures", 60, right=right), tmp_path / "run"
    quiet = ["plots=false", "trainer.enable_progress_bar=false", "logger=none"]
    words = ["data=folder", f"data.source.path={source}", f"output_dir={run}", "trainer.max_epochs=2", *NET, *quiet]
    results = train(*words)
    assert results["best_checkpoint"] != "last.ckpt"
    low, high = results["intervals"]["test/rank-1"]
    assert low <= results["metrics"]["test/rank-1"] <= high
    said = " ".join(results["words"])
    assert ("Nothing was learned that test can show" in said) is not right
    assert "test/tar@far=1e-3 says nothing" in said
    assert "of identities that were trained" in said
    lists = {p.stem: p.read_text().split() for p in (run / "identities").iterdir()}
    assert {name: len(found) for name, found in lists.items()} == {"train": 52, "val": 4, "test": 4}
    assert len(set().union(*lists.values())) == 60
    if not right:
        return
    kept = run / "checkpoints" / results["best_checkpoint"]
    held = f"path: {source}, identities: {run / 'identities' / 'test.txt'}"
    again = evaluate(
        f"run={run}", f"+protocols.mine={{type: one_shot, {held}}}", f"output_dir={tmp_path / 'eval'}", "plots=false"
    )
    assert kept.exists()
    assert again["metrics"]["mine/rank-1"] == pytest.approx(results["metrics"]["test/rank-1"], abs=0.15)
    (tmp_path / "wrong.txt").write_text("nobody\n")
    with pytest.raises(ValueError, match=r"names 1 identities that .* has not, such as 'nobody'"):
        evaluate(
            f"run={run}", f"+protocols.mine={{type: one_shot, path: {source}, identities: {tmp_path / 'wrong.txt'}}}",
            f"output_dir={tmp_path / 'eval2'}",
        )  # fmt: skip
