"""PartialFCModule: its parts, its hooks, its checkpoints, and what it measures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import timm
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_pfc import PartialFC, PartialFCModule
from lightning_pfc.data import IdentityDataModule, Synthetic
from lightning_pfc.heads.sampling import Mixed
from lightning_pfc.losses import ArcFace, CosFace
from lightning_pfc.models.backbone import as_input_size, create_backbone, output_width
from lightning_pfc.models.neck import create_neck
from lightning_pfc.names import renamed

SMALL: dict[str, Any] = {
    "backbone": "glyphnet",
    "backbone_options": {"widths": [8, 8], "depths": [0, 0]},
    "input_size": [1, 8, 8],
    "embedding_dim": 8,
    "num_classes": 40,
}


@pytest.fixture(autouse=True)
def own_group(no_leaked_process_group: None) -> Iterator[None]:
    """The strategy makes a group of one process, which a Trainer leaves behind."""
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def data(task: Any = "open", **kwargs: Any) -> IdentityDataModule:
    source = Synthetic(
        num_classes=40, images_per_class=4, image_size=8, dim=16, task=task, test_classes=20, impostors=500
    )
    return IdentityDataModule(source, **{"batch_size": 16} | kwargs)


def trainer(tmp_path: Path, **kwargs: Any) -> L.Trainer:
    options = {"max_epochs": 2, "enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return L.Trainer(strategy="pfc", accelerator="cpu", devices=1, default_root_dir=tmp_path, **options | kwargs)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "vit_tiny_patch16_224", "efficientnet_b0"])
def test_the_width_is_what_the_backbone_gives(name: str) -> None:
    model = create_backbone(name, input_size=(1, 64, 64))
    model.train()
    width = output_width(model, (1, 64, 64))
    assert model.training
    with torch.no_grad():
        assert model.eval()(torch.zeros(1, 1, 64, 64)).shape == (1, width)


def test_num_features_would_have_been_wrong() -> None:
    model = create_backbone("mobilenetv3_small_050")
    assert output_width(model, (3, 224, 224)) == 1024 != model.num_features


def test_measuring_the_width_changes_nothing() -> None:
    model = timm.create_model("resnet10t", num_classes=0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    output_width(model, (3, 32, 32))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_that_needs_real_numbers_is_asked_with_real_ones() -> None:
    class Picky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, : 3 + int(x.sum().item())]

    assert output_width(Picky(), (1, 4, 4)) == 3


@pytest.mark.parametrize(("given", "meant"), [(32, (3, 32, 32)), ([8, 16], (3, 8, 16)), ((1, 2, 3), (1, 2, 3))])
def test_input_sizes(given: Any, meant: Any) -> None:
    assert as_input_size(given) == meant


@pytest.mark.parametrize("bad", [0, [1, 2, 3, 4], [1.5, 2], []])
def test_bad_input_sizes(bad: Any) -> None:
    with pytest.raises(ValueError, match="input_size="):
        as_input_size(bad)


def test_names_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match="Did you mean resnet18"):
        create_backbone("resnet8teen")
    with pytest.raises(ValueError, match="does not take the options"):
        create_backbone("resnet18", options={"colour": 3})
    with pytest.raises(ValueError, match="there are: bn, linear, none"):
        create_neck("bm", 4, 4)
    with pytest.raises(ValueError, match="embedding_dim=8 differs"):
        create_neck("none", 4, 8)


def test_the_bn_neck_ends_in_a_fixed_scale() -> None:
    neck = create_neck("bn", 4, 6)
    last = neck[-1]  # type: ignore[index]
    assert last.weight.requires_grad is False
    assert torch.equal(last.weight, torch.ones(6))
    assert last.bias.requires_grad


def test_training_measures_and_loads_again(tmp_path: Path) -> None:
    L.seed_everything(0, verbose=False)
    module = PartialFCModule(
        **SMALL,
        loss=CosFace(scale=16.0, margin=0.1),
        sample_rate=0.5,
        optimizer={"name": "adamw", "lr": 0.01, "head_lr_scale": 5.0, "weight_decay": 0.0},
        scheduler={"name": "polynomial", "warmup_epochs": 0.5},
    )
    fitter = trainer(tmp_path, max_epochs=8)
    fitter.fit(module, data())
    assert {"val/accuracy", "val/auc", "val/tar@far=1e-3"} <= set(fitter.callback_metrics)
    assert fitter.lr_scheduler_configs[0].scheduler.get_last_lr()[0] == pytest.approx(0.0, abs=1e-9)
    measured = fitter.test(module, data(), verbose=False)[0]
    assert measured["test/accuracy"] > 0.65

    path = tmp_path / "model.ckpt"
    fitter.save_checkpoint(path)
    again = PartialFCModule.load_from_checkpoint(path, weights_only=True)
    assert again.head.loss == module.head.loss
    assert dict(again.hparams) == dict(module.hparams)
    images = torch.randn(3, 1, 8, 8)
    assert torch.equal(again.eval()(images), module.eval()(images))
    assert torch.equal(again.head.weight, module.head.weight)


def test_a_closed_set_is_measured_by_class(tmp_path: Path) -> None:
    L.seed_everything(0, verbose=False)
    module = PartialFCModule(
        **SMALL, loss="NormFace", optimizer={"name": "adamw", "lr": 0.01, "head_lr_scale": 5.0, "weight_decay": 0.0}
    )
    fitter = trainer(tmp_path, max_epochs=8)
    fitter.fit(module, data("closed"))
    measured = fitter.test(module, data("closed"), verbose=False)[0]
    assert set(measured) == {"test/loss", "test/top1", "test/top5", "test/target_cosine"}
    assert 0.3 < measured["test/top1"] <= measured["test/top5"] <= 1.0


def test_plain_loaders_are_closed_sets(tmp_path: Path) -> None:
    images, labels = torch.randn(32, 1, 8, 8), torch.arange(32) % 40
    loader = DataLoader(TensorDataset(images, labels), batch_size=8)
    module = PartialFCModule(**SMALL)
    fitter = trainer(tmp_path, max_epochs=1)
    fitter.fit(module, loader, loader)
    assert "val/top1" in fitter.callback_metrics
    module.eval()
    ranks, _ = module.head.target_ranks(module(images), labels)
    measured = fitter.validate(module, loader, verbose=False)[0]
    assert measured["val/top1"] == pytest.approx(float((ranks == 0).float().mean()))
    assert measured["val/top5"] == pytest.approx(float((ranks < 5).float().mean()))


def test_predicting_gives_embeddings(tmp_path: Path) -> None:
    module = PartialFCModule(**SMALL)
    loader = DataLoader(TensorDataset(torch.randn(6, 1, 8, 8)), batch_size=4)
    batches = trainer(tmp_path).predict(module, loader)
    assert [tuple(batch.shape) for batch in batches] == [(4, 8), (2, 8)]  # type: ignore[union-attr]


# --- subclasses, as the documentation shows them ----------------------------------------------------------------------


class AnotherBackbone(PartialFCModule):
    def make_backbone(self, backbone: Any, input_size: Any, pretrained: bool) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU())


class AnotherLoss(PartialFCModule):
    """Adds a penalty on the length of the embeddings."""

    def __init__(self, *, penalty: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.penalty = penalty

    def training_loss(self, embeddings: Tensor, batch: Sequence[Any]) -> Tensor:
        return super().training_loss(embeddings, batch) + self.penalty * embeddings.pow(2).mean()


class TwoHeads(PartialFCModule):
    """Identities, and something else that is known of each image."""

    def __init__(self, *, num_styles: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.style_head = PartialFC(embedding_dim=self.embedding_dim, num_classes=num_styles, loss="NormFace")

    def training_loss(self, embeddings: Tensor, batch: Sequence[Any]) -> Tensor:
        return self.head(embeddings, batch[1]) + 0.5 * self.style_head(embeddings, batch[1] % 5)


@pytest.mark.parametrize(
    ("cls", "more"), [(AnotherBackbone, {}), (AnotherLoss, {"penalty": 0.1}), (TwoHeads, {"num_styles": 5})]
)
def test_subclasses_train_and_load(tmp_path: Path, cls: type[PartialFCModule], more: dict[str, Any]) -> None:
    module = cls(**SMALL, **more, loss=ArcFace(scale=16.0))
    fitter = trainer(tmp_path, max_epochs=1, limit_val_batches=0)
    fitter.fit(module, data())
    path = tmp_path / "model.ckpt"
    fitter.save_checkpoint(path)
    again = cls.load_from_checkpoint(path, weights_only=True)
    assert again.hparams["loss"] == {"name": "ArcFace", "scale": 16.0}
    assert all(again.hparams[name] == value for name, value in more.items())
    for name, value in module.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_two_heads_both_learn(tmp_path: Path) -> None:
    module = TwoHeads(**SMALL, num_styles=5)
    module.style_head.to("cpu")
    before = module.style_head.weight.detach().clone()
    fitter = trainer(tmp_path, max_epochs=1, limit_val_batches=0)
    fitter.fit(module, data())
    assert not torch.equal(before, module.style_head.weight)
    logged = {"train/loss", "train/target_cosine", "train/target_cosine/style_head"}
    assert {name for name in fitter.callback_metrics if name.startswith("train/")} == logged
    assert fitter.callback_metrics["train/target_cosine"] != fitter.callback_metrics["train/target_cosine/style_head"]


class AnotherHeadOnly(TwoHeads):
    """Its training step asks the second head alone, and its first head only in between."""

    def training_loss(self, embeddings: Tensor, batch: Sequence[Any]) -> Tensor:
        return self.style_head(embeddings, batch[1] % 5)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.head(torch.randn(4, self.embedding_dim), batch[1][:4])


def test_what_is_logged_is_of_the_step_itself(tmp_path: Path) -> None:
    """The target's cosine used to be what the head had left behind, in whatever call."""
    module = AnotherHeadOnly(**SMALL, num_styles=5)
    fitter = trainer(tmp_path, max_epochs=1, limit_val_batches=0)
    fitter.fit(module, data())
    logged = {name for name in fitter.callback_metrics if name.startswith("train/")}
    assert logged == {"train/loss", "train/target_cosine/style_head"}
    assert not module.head._loss_hooks


def test_a_backbone_given_as_a_module_is_not_stored(tmp_path: Path) -> None:
    def network() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 24))

    arguments = {k: v for k, v in SMALL.items() if k not in ("backbone", "backbone_options")}
    module = PartialFCModule(backbone=network(), **arguments)
    assert "backbone" not in module.hparams
    fitter = trainer(tmp_path, max_epochs=1, limit_val_batches=0)
    fitter.fit(module, data())
    fitter.save_checkpoint(tmp_path / "model.ckpt")
    again = PartialFCModule.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True, backbone=network())
    assert torch.equal(again.backbone[1].weight, module.backbone[1].weight)  # type: ignore[index]


def vectors(flatten: bool) -> PartialFCModule:
    net = nn.Sequential(*([nn.Flatten()] if flatten else []), nn.Linear(12, 6))
    return PartialFCModule(backbone=net, num_classes=9, embedding_dim=4, input_size=(1, 1, 12), loss="CosFace")


def test_vectors_need_a_backbone_that_flattens() -> None:
    module = vectors(flatten=True)
    assert module(torch.randn(3, 12)).shape == (3, 4)
    with pytest.raises(ValueError, match=r"begin with nn.Flatten\(\) and give input_size=\(1, 1, K\)"):
        vectors(flatten=False)


def small(**words: Any) -> PartialFCModule:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 6))
    return PartialFCModule(backbone=net, num_classes=9, embedding_dim=4, input_size=2, loss="CosFace", **words)


def test_the_heads_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """One mapping; two of them in short, which go before; the mapping's earlier name means the same."""
    monkeypatch.setattr(renamed, "_told", set())
    module = small(head={"sample_rate": 0.5, "seed": 3, "chunk_size": 5, "sampler": Mixed(refresh=2)})
    assert (module.sample_rate, module.seed, module.head.sample_rate, module.head.seed) == (0.5, 3, 0.5, 3)
    assert (module.head.chunk_size, module.head.sampler) == (5, Mixed(refresh=2))
    assert module.hparams["head"]["sampler"] == Mixed(refresh=2).to_config()
    again = small(**{k: v for k, v in module.hparams.items() if k in ("head",)})
    assert (again.head.sampler, again.sample_rate, again.head.chunk_size) == (Mixed(refresh=2), 0.5, 5)
    with pytest.warns(UserWarning, match=r"sample_rate=0.1 is taken, and not head=\{'sample_rate': 0.5\}"):
        assert small(head={"sample_rate": 0.5}, sample_rate=0.1).head.sample_rate == 0.1
    with pytest.warns(FutureWarning, match=r"head_options=\) is called head= now"):
        earlier = small(sample_rate=0.5, seed=3, head_options={"chunk_size": 5})
    assert earlier.hparams["head"] == {"sample_rate": 0.5, "seed": 3, "chunk_size": 5}
    assert "head_options" not in earlier.hparams
    assert small().hparams["head"] == {"sample_rate": 1.0, "seed": 0}
    with pytest.raises(TypeError, match="head='full' must be a mapping"):
        small(head="full")
    with pytest.raises(TypeError, match="sampel_rate"):
        small(head={"sampel_rate": 0.5})


def test_the_command_line_of_lightning(tmp_path: Path) -> None:
    pytest.importorskip("jsonargparse", reason="the extra `cli` is not installed")
    from lightning.pytorch.cli import LightningCLI

    words = ["--model.backbone=resnet10t", "--model.num_classes=11", "--model.embedding_dim=16"]
    words += ["--model.loss=CosFace", "--model.sample_rate=0.5", "--model.input_size=[1,32,32]"]
    words += ["--trainer.strategy=pfc", "--trainer.accelerator=cpu", "--trainer.logger=false"]
    cli = LightningCLI(PartialFCModule, run=False, args=words, save_config_callback=None)
    assert cli.model.head.num_classes == 11
    assert cli.model.head.loss == CosFace()
    assert cli.model.input_size == (1, 32, 32)
