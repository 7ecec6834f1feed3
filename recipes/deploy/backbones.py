"""Exports every backbone group of ``conf/backbone`` with its neck, and compares the file with the module.

    python recipes/deploy/backbones.py                  # all of them
    python recipes/deploy/backbones.py iresnet50 glyphnet

Weights are drawn, pictures too: what is shown is that the exporter expresses the network, at batches of 1, 3 and 64 (of
networks above 150 million parameters 1 and 3). A line each: parameters, the largest 1 - cosine, seconds; or why it does
not export.
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import nn

from lightning_pfc import PartialFCModule
from lightning_pfc.config import compose
from lightning_pfc.config_words import config_dir
from lightning_pfc.deploy.engines import open_engine
from lightning_pfc.deploy.errors import ExportError
from lightning_pfc.deploy.fidelity import BATCHES, compare_engines
from lightning_pfc.deploy.onnx_file import write_onnx
from lightning_pfc.deploy.output import Output
from lightning_pfc.deploy.torch_engine import TorchEngine

LARGE = 150_000_000  # parameters
SIDES = {"face": 112, "iresnet": 112, "mobilefacenet": 112, "cvlface": 112, "inception": 160, "glyphnet": 32}


def exported(group: str) -> str:
    """A line about one group."""
    started = time.perf_counter()
    config = compose([f"backbone={group}", *(["backbone.name=test_resnet"] if group == "timm" else [])]).backbone
    side = next((side for start, side in SIDES.items() if group.startswith(start)), 224)
    channels = 1 if group == "glyphnet" else 3
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    torch.manual_seed(0)
    module = PartialFCModule(
        backbone=plain["name"],
        backbone_options=plain["options"],
        embedding_dim=plain["embedding_dim"],
        neck=plain["neck"],
        num_classes=10,
        input_size=(channels, side, side),
    ).eval()
    network = Output(nn.Sequential(module.backbone, module.neck)).eval()
    count = sum(p.numel() for p in network.parameters())
    images = np.random.default_rng(0).standard_normal((3, channels, side, side)).astype(np.float32)
    _settle(network, torch.from_numpy(images))
    batches = BATCHES if count < LARGE else BATCHES[:2]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        try:
            write_onnx(
                network, (channels, side, side), path, input_name="images", output_name="embeddings", metadata={}
            )
            found = compare_engines(TorchEngine(network), open_engine("onnxruntime", path), images, batches)
        except ExportError as error:
            return f"| {group} | {count / 1e6:.1f} M | does not export: {error} | |"
    return f"| {group} | {count / 1e6:.1f} M | {found.cosine_loss:.1e} | {time.perf_counter() - started:.0f} |"


def _settle(network: nn.Module, images: torch.Tensor) -> None:
    """Batch statistics of these pictures: with those that a network is made with, a hundred layers overflow."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(images)
    network.eval()


def main() -> None:
    """See the top of the file."""
    warnings.simplefilter("ignore")
    groups = sys.argv[1:] or sorted(path.stem for path in (config_dir() / "backbone").glob("*.yaml"))
    print("| group | parameters | largest 1 - cosine | seconds |\n| --- | --- | --- | --- |")
    for group in groups:
        print(exported(group), flush=True)


if __name__ == "__main__":
    main()
