"""``finetune=lora``: only adapters learn, checkpoints are plain, the same on any number of ranks and after going on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import EMAWeightAveraging
from timm import list_models
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_pfc import PartialFC, PartialFCModule
from lightning_pfc.checkpoint.errors import CheckpointError
from lightning_pfc.config import compose
from lightning_pfc.losses import CosFace
from lightning_pfc.optim import SparseSGD
from lightning_pfc.transfer import FineTune, Lora
from tests import console
from tests.ranks import RankPool
from tests.trainer.test_other_options import SYNTHETIC
from tests.trainer.world import TheirModule, make_trainer

pytest.importorskip("peft", reason="peft is not installed: pip install 'lightning-pfc[lora]'")

RUN: dict[str, Any] = {"rank": 2, "alpha": 3.0, "dropout": 0.0}
CLASSES, BATCH = 7, 12


def vit() -> VisionTransformer:
    torch.manual_seed(5)
    return VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=2, num_heads=2, num_classes=0)


class Faces(TheirModule):
    def __init__(self) -> None:
        super().__init__(sample_rate=0.6)
        self.backbone = vit()  # type: ignore[assignment]

    def make_head(self) -> PartialFC:
        return PartialFC(embedding_dim=8, num_classes=CLASSES, loss=CosFace(scale=8.0), sample_rate=0.6, init_std=0.5)

    def configure_optimizers(self) -> Any:
        return SparseSGD([p for p in self.parameters() if p.requires_grad], lr=0.01, momentum=0.9)


def pictures(rank: int, world_size: int) -> Any:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2 * BATCH, 3, 8, 8, generator=generator)
    y = torch.randint(CLASSES, (2 * BATCH,), generator=generator)
    mine = torch.arange(2 * BATCH).view(2, world_size, -1)[:, rank].flatten()
    return DataLoader(TensorDataset(x[mine], y[mine]), batch_size=BATCH // world_size)


def fit(rank: int, world_size: int, lora: dict[str, Any], run: dict[str, Any]) -> Any:
    model = Faces()
    torch.manual_seed(2)
    tune = FineTune(frozen_epochs=None, lora=lora, distill=run.get("distill", 0.0))
    trainer = make_trainer(rank, world_size, max_epochs=run.get("epochs", 3), callbacks=[tune])
    trainer.fit(model, pictures(rank, world_size), ckpt_path=run.get("load"))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    if "save" in run:
        trainer.fit_loop.max_epochs = 0
        trainer.save_checkpoint(run["save"])
    assert type(model.backbone.blocks[0].attn.qkv) is nn.Linear  # type: ignore[index, union-attr]  # given back
    assert all(p.requires_grad for p in model.parameters())
    return before, model.losses


class Saves(L.Callback):
    """A checkpoint in the middle, while adapters are there, and what the module computed then."""

    def __init__(self, path: str, epoch: int) -> None:
        self.path, self.epoch = path, epoch
        self.embedded: Tensor | None = None

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == self.epoch:
            assert not isinstance(pl_module.backbone.blocks[0].attn.qkv, nn.Linear)
            pl_module.eval()
            with torch.no_grad():
                self.embedded = pl_module.backbone(torch.ones(2, 3, 8, 8))
            pl_module.train()
            trainer.save_checkpoint(self.path)


def fit_and_save(rank: int, world_size: int, path: str, options: dict[str, Any]) -> Any:
    model = Faces()
    torch.manual_seed(2)
    saves = Saves(path, 0)
    tune = FineTune(frozen_epochs=None, lora=RUN, **options)
    make_trainer(rank, world_size, max_epochs=3, callbacks=[tune, saves]).fit(model, pictures(rank, world_size))
    return {k: v.clone() for k, v in model.state_dict().items()}, saves.embedded


def go_on(rank: int, world_size: int, path: str, lora: dict[str, Any] | None, options: dict[str, Any]) -> Any:
    model = Faces()
    tune = FineTune(frozen_epochs=None, lora=lora, **options)
    trainer = make_trainer(rank, world_size, max_epochs=3, callbacks=[tune])
    try:
        trainer.fit(model, pictures(rank, world_size), ckpt_path=path)
    except CheckpointError as error:
        return str(error)
    return {k: v.clone() for k, v in model.state_dict().items()}


@pytest.mark.parametrize(("layers", "moved"), [
    (["qkv"], {"attn.qkv"}),
    (["proj", "mlp"], {"attn.proj", "mlp.fc1", "mlp.fc2"}),
])  # fmt: skip
def test_only_what_was_said_moves(ranks: RankPool, layers: list[str], moved: set[str]) -> None:
    [(after, losses)] = ranks.run(1, fit, {**RUN, "layers": layers}, {})
    before = Faces().state_dict()
    assert list(after) == list(before)
    found = {name for name in before if name.startswith("backbone") and not torch.equal(before[name], after[name])}
    assert found == {f"backbone.blocks.{block}.{name}.weight" for block in range(2) for name in moved}
    for name in found:
        assert torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-4) <= 2
    assert sum(losses[-2:]) < sum(losses[:2])


def test_the_update_is_the_papers(ranks: RankPool) -> None:
    """One step of SGD from B = 0 written out: dB = scale * dW A', and A does not move; W' = W + scale B A."""
    [(after, _)] = ranks.run(1, one_step, RUN)
    torch.testing.assert_close(*after)


def one_step(rank: int, world_size: int, lora: dict[str, Any]) -> Any:
    from lightning_pfc.transfer.lora import Adapters

    network, images = vit().double(), torch.randn(3, 3, 8, 8, dtype=torch.double)
    plain = vit().double()
    adapters = Adapters(network, Lora(**{**lora, "layers": ["proj"]}))
    layer: Any = network.blocks[1].attn.proj
    a = layer.lora_A["default"].weight.detach().clone()
    for each in (network, plain):
        each(images).square().sum().backward()
    gradient: Any = plain.blocks[1].attn.proj.weight.grad
    expected = plain.blocks[1].attn.proj.weight.detach() - 0.1 * 1.5**2 * gradient @ a.T @ a
    torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1).step()
    adapters.merge()
    return (network.blocks[1].attn.proj.weight.detach(), expected), None


def test_ranks_give_what_one_process_gives(ranks: RankPool) -> None:
    [(one, _)] = ranks.run(1, fit, RUN, {})
    parts = ranks.run(2, fit, RUN, {})
    for name, value in one.items():
        both = [part[0][name] for part in parts]
        found = torch.cat(both) if name == "head.weight" else both[0]
        torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize(("world_size", "options"), [(1, {}), (2, {}), (1, {"distill": 0.5})], ids=str)
def test_going_on_ends_where_it_would_have(
    ranks: RankPool, tmp_path: Path, world_size: int, options: dict[str, Any]
) -> None:
    path = str(tmp_path / "a.ckpt")
    whole = ranks.run(world_size, fit_and_save, path, options)
    again = ranks.run(world_size, go_on, path, RUN, options)
    for (one, _), other in zip(whole, again, strict=True):
        for name, value in one.items():
            assert torch.equal(value, other[name]), name
    # What was saved meanwhile is a plain network that computes what the adapted one did.
    network = Faces()
    state = read_weights(path)
    network.backbone.load_state_dict({k.removeprefix("backbone."): v for k, v in state.items() if "backbone" in k})
    with torch.no_grad():
        torch.testing.assert_close(network.backbone.eval()(torch.ones(2, 3, 8, 8)), whole[0][1], rtol=1e-5, atol=1e-5)


def read_weights(path: str) -> dict[str, Tensor]:
    from lightning_pfc.transfer.sources import open_weights

    weights = open_weights(path)
    return {name: weights.whole(name) for name in weights.shapes if name.startswith("backbone")}


@pytest.mark.parametrize(("lora", "said"), [
    ({**RUN, "rank": 3}, "lora.rank=2, and this run says lora.rank=3"),
    ({**RUN, "alpha": 4.0}, "lora.alpha=3.0, and this run says lora.alpha=4.0"),
    ({**RUN, "layers": ["proj"]}, "lora.layers=qkv, and this run says lora.layers=proj"),
    (None, "the checkpoint has adapters of LoRA, and this run has none"),
])  # fmt: skip
def test_going_on_with_other_words(ranks: RankPool, tmp_path: Path, lora: dict[str, Any] | None, said: str) -> None:
    path = str(tmp_path / "a.ckpt")
    ranks.run(2, fit_and_save, path, {})
    for told in ranks.run(2, go_on, path, lora, {}):
        assert said in told


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rank": 0}, r"lora\.rank=0 must be a whole number of at least 1"),
        ({"alpha": 0}, r"lora\.alpha=0 must be above 0"),
        ({"dropout": 1.0}, r"lora\.dropout=1\.0 must lie in \[0, 1\)"),
        ({"layers": ["q"]}, r"must be a list of some of qkv, proj, mlp"),
        ({"layers": "qkv"}, r"must be a list of some of qkv, proj, mlp"),
        ({"layers": []}, r"must be a list of some of qkv, proj, mlp"),
    ],
)
def test_words_that_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Lora(**options)


def test_words_that_do_not_go_together() -> None:
    for options in ({"frozen_epochs": 0}, {"frozen_epochs": 1}, {"frozen_epochs": None, "trained_blocks": 1}):
        with pytest.raises(ValueError, match="give frozen_epochs=None and no trained_blocks"):
            FineTune(lora=Lora(), **options)  # type: ignore[arg-type]
    ema = EMAWeightAveraging()
    trainer: Any = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", callbacks=[ema])
    with pytest.raises(ValueError, match=r"averages of weights \(callbacks=ema\)"):
        FineTune(frozen_epochs=None, lora=Lora()).setup(trainer, Faces(), "fit")


def test_a_network_without_such_layers_is_refused() -> None:
    import timm

    trainer: Any = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    module = Faces()
    module.backbone = timm.create_model("resnet10t", num_classes=0)
    with pytest.raises(ValueError, match=r"ResNet has no linear layers that are qkv\. LoRA is for vision transform"):
        FineTune(frozen_epochs=None, lora=Lora()).setup(trainer, module, "fit")
    module.backbone = timm.create_model("convnext_atto", num_classes=0, conv_mlp=False)
    with pytest.raises(ValueError, match=r"ConvNeXt has no linear layers that are qkv\. Give lora\.layers=\[mlp\], or"):
        FineTune(frozen_epochs=None, lora=Lora()).setup(trainer, module, "fit")


class Taking(nn.Module):
    """Takes the weight of a layer instead of calling it, as some networks do to add a bias of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.ModuleDict({"qkv": nn.Linear(4, 4)})

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.attn["qkv"].weight)  # type: ignore[arg-type]


def test_layers_that_are_not_called_are_named() -> None:
    from lightning_pfc.transfer.lora import Adapters

    network = Taking()
    adapters = Adapters(network, Lora())
    network(torch.ones(2, 4).requires_grad_()).sum().backward()
    with pytest.raises(ValueError, match=r"Taking does not call its layer attn\.qkv as a module"):
        adapters.check_reached()


def test_without_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_pfc.transfer.lora.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"finetune=lora needs the library 'peft'.*'lightning-pfc\[lora\]'"):
        FineTune(frozen_epochs=None, lora={"rank": 4})


def pfc_train(*words: str) -> Any:
    base = [
        "experiment=none", "backbone=timm", "backbone.name=vit_tiny_patch16_224", "+backbone.options.depth=1",
        "+backbone.options.embed_dim=24", "+backbone.options.patch_size=4", "backbone.embedding_dim=8", "optimizer=sgd",
        "trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "plots=false", "logger=none", "test=false",
    ]  # fmt: skip
    return console.run("lightning_pfc.commands.train", *base, *SYNTHETIC, *words)


def test_the_words_of_the_command(tmp_path: Path) -> None:
    """As typed; what comes out is a plain checkpoint, from which a run goes on."""
    words = ("finetune=lora", "finetune.lora.rank=2", "trainer.max_epochs=1", f"output_dir={tmp_path / 'a'}")
    first = pfc_train(*words)
    assert first.returncode == 0, first.stderr
    assert "192 numbers are trained beside 1 layers of the backbone (qkv), of rank 2" in first.stderr
    module = PartialFCModule.load_from_checkpoint(tmp_path / "a" / "checkpoints" / "last.ckpt", weights_only=True)
    assert type(module.backbone.blocks[0].attn.qkv) is nn.Linear
    again = console.run("lightning_pfc.commands.train", f"resume={tmp_path / 'a'}", "trainer.max_epochs=2")
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(("name", "alpha"), [("froundation_dinov2_small", 64), ("froundation_clip_base", 32)])
def test_the_recipes_compose(name: str, alpha: int) -> None:
    config = compose([f"experiment=finetune/{name}", "data.source.path=/images"])
    tuned = instantiate(config.finetune)
    assert tuned.lora == Lora(rank=16, alpha=alpha, dropout=0.25, layers=("qkv",))
    assert config.backbone.name in list_models(pretrained=True)
    assert (config.optimizer.name, config.optimizer.lr, config.trainer.max_epochs) == ("adamw", 1e-4, 40)
    schedule = config.scheduler
    assert schedule.warmup_epochs + sum(schedule.period_epochs * schedule.period_factor**n for n in range(3)) == 40
