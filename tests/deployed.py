"""A small run and its export, made once: what the tests of everything that uses a model start from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch.distributed as dist
from PIL import Image

IDENTITIES, PICTURES = 60, 4


def write_pictures(root: Path, identities: int = IDENTITIES, pictures: int = PICTURES, seed: int = 0) -> Path:
    """``root/idNN/pN.{png,jpg}``: an identity is a coarse colour pattern; its pictures differ in size and noise."""
    rng = np.random.default_rng(seed)
    for number in range(identities):
        pattern = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        folder = root / f"id{number:02d}"
        folder.mkdir(parents=True)
        for picture in range(pictures):
            width, height = int(rng.integers(24, 40)), int(rng.integers(24, 40))
            pixels = np.asarray(Image.fromarray(pattern).resize((width, height), Image.Resampling.BICUBIC), np.int64)
            pixels = np.clip(pixels + rng.integers(-25, 26, pixels.shape), 0, 255).astype(np.uint8)
            name = f"p{picture}.{'jpg' if picture % 2 else 'png'}"
            Image.fromarray(pixels).save(folder / name, **({"quality": 95} if picture % 2 else {}))
    return root


def small_words(pictures: Path) -> list[str]:
    """Words of ``pfc-train`` for such pictures: a small network, which embeds them well after 20 epochs."""
    return [
        "experiment=none",
        "data=folder",
        f"data.source.path={pictures}",
        "data.source.image_size=24",
        "data.source.fit=crop",
        "data.source.test_share=0.4",
        "data.batch_size=36",
        "backbone.embedding_dim=16",
        "+backbone.options.widths=[8,16]",
        "+backbone.options.depths=[0,0]",
        "trainer.accelerator=cpu",
        "trainer.max_epochs=20",
        "trainer.enable_progress_bar=false",
        "callbacks=none",
        "logger=none",
        "plots=false",
    ]


def train_run(folder: Path, pictures: Path, *words: str) -> Path:
    """A run of ``pfc-train`` on such pictures: a few steps, so that embeddings mean something and cost nothing."""
    from lightning_pfc import train

    before = dist.is_initialized()
    train(
        *small_words(pictures),
        "+callbacks.checkpoint._target_=lightning.pytorch.callbacks.ModelCheckpoint",
        f"+callbacks.checkpoint.dirpath={folder}/checkpoints",
        "+callbacks.checkpoint.save_last=true",
        f"output_dir={folder}",
        *words,
    )
    if dist.is_initialized() and not before:
        dist.destroy_process_group()
    return folder
