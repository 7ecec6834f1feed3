"""No constructor takes a value of another kind in silence: a word for a flag, a fraction for a number of things."""

from __future__ import annotations

import importlib
import inspect
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn

from lightning_pfc import PartialFCModule
from lightning_pfc.checked import _allowed, check_call, checked
from lightning_pfc.config import compose
from lightning_pfc.config_words import check_flags
from lightning_pfc.optim.factory import create_optimizer

WRONG: list[Any] = ["no", "many", 3, 2.5, True, float("nan"), None, b"x"]
# What commands and functions of this package make and hand out; nobody else calls their constructors.
RECORDS = [
    "Preempted",
    "Manifest",
    "IdentityData",
    "LabelledSet",
    "VerificationSet",
    "BrokenImageError",
    "FormatError",
    "MissingLibraryError",
    "TooManyBrokenImagesError",
    "ExportError",
    "GateError",
    "EngineError",
    "NoFaceError",
    "NotCalibratedError",
    "CheckpointError",
    "Threshold",
    "Thresholds",
    "Comparison",
    "Match",
    "Agreement",
    "ClassShard",
    "Comm",
    "AllPairsPoint",
    "AllPairsResult",
    "Peers",
    "ProtocolResult",
    "Measurement",
    "SamplingContext",
    "SampledClasses",
    "BatchInfo",
    "LogitSums",
    "Machine",
    "Memory",
    "Advice",
    "Gap",
    "KFoldAccuracy",
    "KFoldTAR",
    "OperatingPoint",
    "RocCurve",
    "Drawn",
    "Subset",
    "RecordWriter",
    "BinImages",
    "PairedImages",
    "IndexedPairs",
    "ProbeResults",
    "MixedBatch",
    "Pairs",
]
NETWORKS = [
    "Embedder",
    "GlyphNet",
    "IResNet",
    "InceptionResNetV1",
    "MobileFaceNet",
    "FaceViT",
]  # timm's arguments, as timm takes them
NEEDED: dict[str, Any] = {
    "PartialFCModule": {"backbone": nn.Identity(), "num_classes": 3},
    "IdentityDataModule": {"source": SimpleNamespace()},
    "Preprocessing": {"size": (4, 4)},
}
ONE_STANDS_FOR_ALL = [("Preprocessing", "mean"), ("Preprocessing", "std")]  # one number for every channel
CALLBACKS = ("diagnostics.ClassDiagnostics", "evaluation.EvaluateProtocols")


def constructors() -> list[Any]:
    surface = (Path(__file__).parents[1] / "surface.txt").read_text().split("\n")
    names = [line.split()[1] for line in surface if line.startswith("import ")]
    names += [f"lightning_pfc.callbacks.{name}" for name in CALLBACKS] + ["lightning_pfc.transfer.FineTune"]
    found = [getattr(importlib.import_module(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in names]
    classes = {value for value in found if inspect.isclass(value)}
    return sorted((c for c in classes if c.__name__ not in [*RECORDS, *NETWORKS]), key=lambda c: c.__qualname__)


def wrong_values(cls: Any) -> list[tuple[str, Any]]:
    return [
        (name, value)
        for name, allowed in _allowed(cls, cls.__init__).items()
        for value in WRONG
        if not allowed.passes(value) and (cls.__name__, name) not in ONE_STANDS_FOR_ALL
    ]


def is_silent(cls: Any, name: str, value: Any) -> bool:
    try:
        cls(**{**NEEDED.get(cls.__name__, {}), name: value})
    except (TypeError, ValueError) as error:
        return name not in str(error)
    except Exception:  # from within, of what was made of it
        return True
    return True


def test_every_constructor_looks_at_the_kinds_of_its_arguments() -> None:
    tried = [(cls, name, value) for cls in constructors() for name, value in wrong_values(cls)]
    assert len(tried) > 3000
    assert [f"{c.__name__}({n}={v!r})" for c, n, v in tried if is_silent(c, n, v)] == []


@checked
@dataclass(frozen=True, kw_only=True)
class Options:
    flag: bool = False
    count: int | None = None
    share: float = 0.5
    word: Literal["one", "two"] | None = None
    either: int | str = 1
    other: Any = None
    rates: Sequence[float] = ()
    pair: tuple[int, int] | None = None
    shares: Mapping[str, float] | None = None
    path: str | os.PathLike[str] | None = None
    made: torch.Generator | str | None = None
    act: Callable[[], None] | str | None = None


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"flag": "no"}, "Options(flag='no'): flag must be True or False."),
        ({"flag": 2}, "Options(flag=2): flag must be True or False."),
        ({"count": 2.5}, "Options(count=2.5): count must be a whole number or None."),
        ({"share": "0.5"}, "Options(share='0.5'): share must be a number."),
        ({"share": float("nan")}, "Options(share=nan): share must be a number."),
        ({"word": "three"}, "Options(word='three'): word must be one of 'one', 'two' or None."),
        ({"either": 2.5}, "Options(either=2.5): either must be a whole number or a text."),
        ({"rates": 0.1}, "Options(rates=0.1): rates must be a list of numbers, as in rates=[0.1]."),
        ({"rates": ["a"]}, "Options(rates=['a']): rates must be a list of numbers."),
        ({"pair": (1, 2, 3)}, "Options(pair=(1, 2, 3)): pair must be a list of 2 whole numbers or None."),
        ({"shares": [0.5]}, "Options(shares=[0.5]): shares must be a mapping from texts to numbers or None."),
        ({"shares": {"a": "b"}}, "Options(shares={'a': 'b'}): shares must be a mapping from texts to numbers or None."),
        (
            {"path": 3},
            "Options(path=3): path must be a path or None; "
            "one that looks like a number or a list needs quotes: 'path=\"3\"'.",
        ),
        ({"act": 3}, "Options(act=3): act must be a function or a text or None."),
        ({"made": 3}, "Options(made=3): made must be a Generator or a text or None."),
    ],
)
def test_the_message_names_argument_value_and_way_out(given: dict[str, Any], text: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        Options(**given)
    assert str(caught.value) == text


def test_what_is_of_the_kind_is_taken() -> None:
    Options(flag=np.True_, count=np.int64(3), share=np.float32(0.5), word="two", either="x", other=object())  # type: ignore[arg-type]
    Options(flag=1, share=1, count=torch.tensor(3))  # type: ignore[arg-type]
    Options(count=2e9, word=np.str_("one"), either=Path("x"))  # type: ignore[arg-type]
    Options()
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        Options(colour=1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"row_sparse": "no"}, "row_sparse"),
        ({"nesterov": "off"}, "nesterov"),
        ({"row_sparse": False, "nesterov": "off"}, "nesterov"),
        ({"no_decay_on_norm_and_bias": "no"}, "no_decay_on_norm_and_bias"),
    ],
)
def test_flags_of_an_optimizers_config(options: dict[str, Any], name: str) -> None:
    with pytest.raises(TypeError, match=f"{name}.* must be True or False"):
        create_optimizer(nn.Linear(2, 2), {"name": "sgd", "lr": 0.1, "momentum": 0.9, **options}, row_sparse=True)


@pytest.mark.parametrize(
    ("word", "mended"),
    [
        ("data.drop_last=no", "data.drop_last=false"),
        ("test=Off", "test=false"),
        ("plots=yes", "plots=true"),
        ("callbacks.checkpoint.save_last=on", "callbacks.checkpoint.save_last=true"),
        ("head.chunk_size=None", "head.chunk_size=null"),
    ],
)
def test_words_that_hydra_takes_for_texts_are_no_flags(word: str, mended: str) -> None:
    with pytest.raises(ValueError, match=f"{word}: Hydra takes .* for a text; write {mended}"):
        compose([word])


@pytest.mark.parametrize(
    ("word", "mended"),
    [
        ("+trainer.benchmark_all=no", "write false"),
        ("++trainer.new={x: {flag: Off}, text: 'no'}", "trainer.new.x.flag is; write false"),
        ("+trainer.new=None", "write null"),
        ("data.drop_last=no,yes", "write data.drop_last=false"),
        ("data.drop_last=choice(true,on)", "write data.drop_last=true"),
        ("+callbacks.checkpoint={save_last: on}", "write callbacks.checkpoint.save_last=true"),
    ],
)
def test_such_words_under_new_keys_in_sweeps_and_within_braces(word: str, mended: str) -> None:
    with pytest.raises(ValueError, match=f"{re.escape(word)}: Hydra takes .* for a text.*{mended}"):
        check_flags(["loss=of_my_own", word])


def test_the_same_words_where_they_are_words() -> None:
    check_flags(["logger=none", "choices=none", "profile=none", "data.source.task=no", "+trainer.x='no'", "--multirun"])
    check_flags(["+data.source.only=[no,se]", "+trainer.x=none", "+callbacks@more=none", "-m", "data.source.task=a=no"])


class Likeness:
    """Not a Generator, and used as one."""


@pytest.mark.parametrize(
    "given",
    [
        {"rates": np.array([0.1])},
        {"rates": (rate for rate in [0.1])},
        {"rates": (1, 2.5)},
        {"pair": [1, 2]},
        {"shares": {"a": 1}},
        {"path": Path("a")},
        {"made": Likeness()},
        {"made": torch.Generator()},
        {"made": "seeded"},
    ],
)
def test_lists_paths_and_objects_of_the_kind_are_taken(given: dict[str, Any]) -> None:
    Options(**given)


def test_what_hydra_has_still_to_make_is_let_pass() -> None:
    plugin = {"_target_": "lightning.pytorch.plugins.MixedPrecision", "precision": "bf16-mixed"}
    check_call(L.Trainer, {"plugins": [plugin], "strategy": {"_target_": "lightning_pfc.PartialFCStrategy"}}, "trainer")


class Own(PartialFCModule):
    def make_backbone(self, backbone: Any, input_size: Any, pretrained: bool) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(12, backbone[0]))


def test_what_a_subclass_makes_of_an_argument_is_its_own_affair() -> None:
    module = Own(backbone=[5], num_classes=3, embedding_dim=4, input_size=[3, 2, 2])  # type: ignore[arg-type]
    assert module.neck(module.backbone(torch.zeros(2, 3, 2, 2))).shape == (2, 4)
    with pytest.raises(TypeError, match=r"backbone=\[5\]\): backbone must be a text or a Module"):
        PartialFCModule(backbone=[5], num_classes=3, embedding_dim=4, input_size=[3, 2, 2])  # type: ignore[arg-type]
