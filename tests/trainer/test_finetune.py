"""``finetune=``: what must not move does not by a bit, the same on any number of ranks, and after going on."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor, nn

from lightning_pfc import PartialFCModule
from lightning_pfc.config import compose
from lightning_pfc.ignored import IgnoredOptionWarning
from lightning_pfc.optim import SparseSGD
from lightning_pfc.transfer import FineTune
from lightning_pfc.transfer.l2_sp import StartingPoint
from tests import console
from tests.ranks import RankPool
from tests.trainer.test_other_options import pfc_train
from tests.trainer.world import TheirModule, make_loader, make_trainer

WORDS = ["frozen", "head_first", "last_blocks", "layer_decay", "l2_sp", "distill", "lora"]


class Tuned(TheirModule):
    """Linear layers, a batch norm and dropout; two layers as timm counts them."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__(sample_rate=0.6)
        first, tanh, last = self.backbone
        self.backbone = nn.Sequential(first, nn.BatchNorm1d(8), nn.Dropout(dropout), tanh, last)
        self.neck = nn.Linear(6, 6)
        with torch.no_grad():
            self.neck.weight.copy_(torch.eye(6))
            self.neck.bias.zero_()

    def configure_optimizers(self) -> Any:
        return SparseSGD([p for p in self.parameters() if p.requires_grad], lr=self.lr, momentum=0.9)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        assert self.head is not None
        loss: Tensor = self.head(self.neck(self.backbone(batch[0])), batch[1])
        return loss


def matcher(coarse: bool = False) -> dict[str, Any]:
    return {"blocks": [(r"^(\d)\.", None)]}


class Each(L.Callback):
    """The network at the end of each epoch, and where its layers train."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []
        self.modes: list[list[bool]] = []

    def keep(self, module: Any) -> None:
        self.states.append({k: v.clone() for k, v in module.state_dict().items()})

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.keep(pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.modes.append([child.training for child in pl_module.backbone])

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.keep(pl_module)


def fit(rank: int, world_size: int, options: dict[str, Any], run: dict[str, Any]) -> Any:
    model = Tuned(run.get("dropout", 0.0))
    model.backbone.group_matcher = matcher  # type: ignore[assignment]
    each, tune = Each(), FineTune(**options)
    trainer = make_trainer(rank, world_size, max_epochs=run.get("epochs", 3),
                           callbacks=[tune, each])  # fmt: skip
    trainer.fit(model, make_loader(rank, world_size), ckpt_path=run.get("load"))
    if "save" in run:
        trainer.save_checkpoint(run["save"])
    held = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    names = [name for name, p in model.named_parameters() if id(p) in held]
    assert all(p.requires_grad for p in model.parameters())  # given back
    return each.states, each.modes, names, model.losses


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {
        name for name in before if name.startswith(("backbone", "neck")) and not torch.equal(before[name], after[name])
    }


ALL = {"backbone.0.weight", "backbone.0.bias", "backbone.1.weight", "backbone.1.bias", "backbone.4.weight",
       "backbone.4.bias"}  # fmt: skip
STATISTICS = {"backbone.1.running_mean", "backbone.1.running_var", "backbone.1.num_batches_tracked"}
NECK = {"neck.weight", "neck.bias"}
LAST = {"backbone.4.weight", "backbone.4.bias"}


EVERYTHING = ALL | STATISTICS | NECK
BUT_ONE = {name for name in ALL if "0" not in name} | STATISTICS | NECK
CASES: list[tuple[dict[str, Any], set[str], set[str]]] = [
    ({}, EVERYTHING, EVERYTHING),
    ({"batch_norm": "keep"}, ALL | NECK, ALL | NECK),
    ({"frozen_epochs": None}, NECK, NECK),
    ({"frozen_epochs": None, "batch_norm": "train"}, NECK | STATISTICS, NECK | STATISTICS),
    ({"frozen_epochs": 1}, NECK, EVERYTHING),
    ({"frozen_epochs": 1, "batch_norm": "keep"}, NECK, ALL | NECK),
    ({"frozen_epochs": None, "trained_blocks": 1}, NECK | LAST, NECK | LAST),
    ({"frozen_epochs": 1, "trained_blocks": 2}, BUT_ONE, EVERYTHING),
    ({"l2_sp": 0.1}, EVERYTHING, EVERYTHING),
    ({"distill": 0.5}, EVERYTHING, EVERYTHING),
    ({"distill": 0.5, "frozen_epochs": 1, "batch_norm": "keep"}, NECK, ALL | NECK),
]  # what moves in the first epoch, and in the second


@pytest.mark.parametrize(("options", "first", "later"), CASES, ids=[str(case[0]) for case in CASES])
def test_what_must_not_move_does_not(
    ranks: RankPool, options: dict[str, Any], first: set[str], later: set[str]
) -> None:
    [(states, modes, names, _)] = ranks.run(1, fit, options, {"epochs": 2})
    assert moved(states[0], states[1]) == first
    assert moved(states[1], states[2]) == later
    held = {name for name in names if name.startswith("backbone")}
    assert held == (ALL if options.get("frozen_epochs", 0) is not None else first & ALL)
    assert not torch.equal(states[0]["head.weight"], states[1]["head.weight"])
    if options == {"frozen_epochs": 1}:
        assert modes == [[False] * 5, [True] * 5]


@pytest.mark.parametrize(
    "options", [{"frozen_epochs": 1}, {"frozen_epochs": None}, {"l2_sp": 0.1}, {"distill": 0.5}], ids=str
)
def test_ranks_give_what_one_process_gives(ranks: RankPool, options: dict[str, Any]) -> None:
    """Of frozen statistics: those of a batch are of a rank's part of it, with and without this."""
    options = {"batch_norm": "keep", **options}
    [(one, _, _, _)] = ranks.run(1, fit, options, {})
    parts = ranks.run(2, fit, options, {})
    for epoch in range(4):
        for name, value in one[epoch].items():
            both = [part[0][epoch][name] for part in parts]
            found = torch.cat(both) if name == "head.weight" else both[0]
            torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")
    for part in parts:
        if options.get("frozen_epochs") == 1:
            assert moved(part[0][0], part[0][1]) == NECK


@pytest.mark.parametrize(
    ("options", "epochs"),
    [
        ({"frozen_epochs": 2}, 1),
        ({"frozen_epochs": 2}, 2),
        ({"frozen_epochs": 1}, 2),
        ({"l2_sp": 0.1}, 2),
        ({"distill": 0.5}, 2),
    ],
    ids=["frozen", "about to thaw", "thawed", "l2_sp", "distill"],
)
@pytest.mark.parametrize("world_size", [1, 2])
def test_going_on_ends_where_it_would_have(
    ranks: RankPool, tmp_path: Path, options: dict[str, Any], epochs: int, world_size: int
) -> None:
    whole = ranks.run(world_size, fit, options, {})
    path = str(tmp_path / "a.ckpt")
    ranks.run(world_size, fit, options, {"epochs": epochs, "save": path})
    again = ranks.run(world_size, fit, options, {"load": path})
    for one, other in zip(whole, again, strict=True):
        for name, value in one[0][-1].items():
            assert torch.equal(value, other[0][-1][name]), name


def test_dropout_is_still_where_layers_are_frozen(ranks: RankPool) -> None:
    options = {"frozen_epochs": None}
    [(with_, _, _, losses)] = ranks.run(1, fit, options, {"epochs": 1, "dropout": 0.5})
    [(without, _, _, others)] = ranks.run(1, fit, options, {"epochs": 1})
    assert losses == others
    assert torch.equal(with_[-1]["head.weight"], without[-1]["head.weight"])


def test_the_pull_of_l2_sp_is_its_closed_form() -> None:
    torch.manual_seed(0)
    params = {name: nn.Parameter(torch.randn(3, 4).double()) for name in "abc"}
    start = {name: torch.randn(3, 4).double() for name in "ab"}
    for name in "ac":
        params[name].grad = torch.randn(3, 4).double()
    before = {name: params[name].grad.clone() for name in "ac"}  # type: ignore[union-attr]
    point = StartingPoint(0.3, start)
    value = point.pull(params)
    again = params["a"].detach().clone().requires_grad_()
    expected = 0.15 * (again - start["a"]).square().sum()
    [gradient] = torch.autograd.grad(expected, again)
    torch.testing.assert_close(value.double(), expected.detach(), rtol=1e-6, atol=0)
    assert params["a"].grad is not None
    torch.testing.assert_close(params["a"].grad - before["a"], gradient)
    assert params["c"].grad is not None
    assert torch.equal(params["c"].grad, before["c"])  # not there when the run began
    assert params["b"].grad is None  # frozen
    assert point.nbytes == 2 * 12 * 8


def test_l2_sp_keeps_weights_near(ranks: RankPool) -> None:
    ways = []
    for alpha in (0.0, 0.1, 1.0):
        [(states, _, _, _)] = ranks.run(1, fit, {"l2_sp": alpha}, {})
        ways.append(float((states[-1]["backbone.0.weight"] - states[0]["backbone.0.weight"]).norm()))
    assert ways[0] > ways[1] > ways[2] > 0


class Explicit(Tuned):
    """The term written out, with a copy made by hand."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight, self.losses = weight, []
        self.before = copy.deepcopy(self.backbone).eval()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        features = self.backbone(batch[0])
        with torch.no_grad():
            was = self.before(batch[0])
        cosine = (features * was).sum(1) / features.norm(dim=1) / was.norm(dim=1)
        assert self.head is not None
        return self.head(self.neck(features), batch[1]) + self.weight * (1 - cosine).mean()


def test_distillation_is_the_term_written_out(ranks: RankPool) -> None:
    [(states, _, _, _)] = ranks.run(1, fit, {"distill": 0.7}, {})
    [expected] = ranks.run(1, fit_explicit, 0.7)
    for name, value in expected.items():
        torch.testing.assert_close(
            states[-1][name], value, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}"
        )
    [(without, _, _, _)] = ranks.run(1, fit, {}, {})
    assert not torch.equal(without[-1]["backbone.0.weight"], states[-1]["backbone.0.weight"])


def fit_explicit(rank: int, world_size: int, weight: float) -> dict[str, Tensor]:
    model = Explicit(weight)
    trainer = make_trainer(rank, world_size, max_epochs=3)
    model.before.requires_grad_(False)
    trainer.fit(model, make_loader(rank, world_size))
    return {k: v for k, v in model.state_dict().items() if not k.startswith("before")}


def test_distillation_needs_a_backbone_that_is_called(ranks: RankPool) -> None:
    [said] = ranks.run(1, fit_by_hand)
    assert "training_step did not call it as a module" in said


def fit_by_hand(rank: int, world_size: int) -> str:
    model = Tuned()
    model.loss = lambda batch: model.head(model.backbone.forward(batch[0]), batch[1])  # type: ignore
    step = model.training_step
    try:
        make_trainer(rank, world_size, callbacks=[FineTune(distill=1.0)]).fit(model, make_loader(rank, world_size))
    except ValueError as error:
        return str(error)
    assert model.training_step == step
    return ""


def test_distillation_beside_steps_of_ones_own_is_refused_with_a_way_out() -> None:
    model = Tuned()
    model.automatic_optimization = False
    trainer: Any = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    with pytest.raises(ValueError, match=r"distill=1\.0 adds to the loss .* automatic_optimization=False .* Leave"):
        FineTune(distill=1.0).on_fit_start(trainer, model)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"frozen_epochs": -1}, "frozen_epochs=-1 must be 0 or more"),
        ({"trained_blocks": 0, "frozen_epochs": 1}, "trained_blocks=0 must be at least 1"),
        ({"trained_blocks": 2}, "frozen_epochs=0 freezes nothing"),
        ({"batch_norm": "freeze"}, "batch_norm must be one of 'keep', 'train' or None"),
        ({"l2_sp": -0.1}, r"l2_sp=-0\.1 must be 0 or more"),
        ({"l2_sp": 0.1, "frozen_epochs": None}, "l2_sp=0.1 pulls .* freezes the whole backbone.* leave l2_sp out"),
        ({"distill": -1}, "distill=-1 must be 0 or more"),
        ({"distill": 1.0, "frozen_epochs": None}, "distill=1.0 keeps .* the whole backbone.* leave distill out"),
    ],
)  # fmt: skip
def test_words_that_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        FineTune(**options)


def test_words_that_do_not_apply_to_a_backbone() -> None:
    trainer: Any = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    module = TheirModule()
    with pytest.warns(IgnoredOptionWarning, match=r"finetune\.batch_norm=keep has no effect: Sequential has no batch"):
        FineTune(batch_norm="keep").setup(trainer, module, "fit")
    with pytest.raises(ValueError, match="Sequential does not tell its layers"):
        FineTune(frozen_epochs=None, trained_blocks=1).setup(trainer, module, "fit")
    module.backbone.group_matcher = matcher  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"has 2 layers, so that nothing would be frozen\. Give at most 1"):
        FineTune(frozen_epochs=None, trained_blocks=2).setup(trainer, module, "fit")
    del module.backbone
    with pytest.raises(ValueError, match=r"speaks of module\.backbone, and TheirModule has none"):
        FineTune().setup(trainer, module, "fit")


def test_the_words_of_the_command(tmp_path: Path) -> None:
    """As typed: each word trains, the rates are those asked for, and going on does too."""
    text = console.run("lightning_pfc.commands.train", "--help").stdout
    assert all(word in text for word in WORDS)
    base = ("trainer.max_epochs=2", "trainer.limit_train_batches=2")
    first = pfc_train(*base, "trainer.max_epochs=1", f"output_dir={tmp_path / 'a'}")
    assert first.returncode == 0, first.stderr
    out = f"output_dir={tmp_path / 'b'}"
    tuned = pfc_train(*base, "finetune=head_first", f"init_from={tmp_path / 'a'}", out)
    assert tuned.returncode == 0, tuned.stderr
    assert "are frozen until epoch 1" in tuned.stderr
    assert "are trained from now on" in tuned.stderr
    again = pfc_train(f"resume={tmp_path / 'b'}", "trainer.max_epochs=3")
    assert again.returncode == 0, again.stderr
    out = f"output_dir={tmp_path / 'c'}"
    wrong = pfc_train("finetune=last_blocks", "finetune.trained_blocks=9", f"init_from={tmp_path / 'a'}", out)
    assert wrong.returncode > 0
    assert "finetune.trained_blocks=9: GlyphNet has 2 layers" in wrong.stderr
    assert "Traceback" not in wrong.stderr


@pytest.mark.parametrize(("name", "rates"), [("few_pictures", (0, 1)), ("against_forgetting", (0.01, 0))])
def test_every_recipe_composes(name: str, rates: tuple[float, int]) -> None:
    config = compose([f"experiment=finetune/{name}"])
    tuned = instantiate(config.finetune)
    assert isinstance(tuned, FineTune)
    assert (tuned.l2_sp, tuned.frozen_epochs) == rates
    assert (config.head.init, config.optimizer.backbone_lr_scale) == ("class_means", 0.1)


@pytest.mark.parametrize("word", WORDS)
def test_every_word_composes(word: str) -> None:
    if word == "lora":
        pytest.importorskip("peft", reason="peft is not installed: pip install 'lightning-pfc[lora]'")
    config = compose([f"finetune={word}", "optimizer=sgd"])
    assert isinstance(instantiate(config.finetune), FineTune)
    module = instantiate(config.model, num_classes=9, input_size=[1, 32, 32], _convert_="all")
    assert isinstance(module, PartialFCModule)
    rates = {"layer_decay": {"layer_decay": 0.75}, "head_first": {"backbone_lr_scale": 0.1}}.get(word, {})
    for key in ("layer_decay", "backbone_lr_scale"):
        assert module.optimizer_config[key] == rates.get(key, 1.0)
