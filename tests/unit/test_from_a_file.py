"""What a checkpoint may set, by a reviewed list: opening one reads and writes no other file, and connects to nobody."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from lightning_pfc import PartialFC, PartialFCModule
from lightning_pfc.checkpoint import CheckpointError, save_folder
from lightning_pfc.checkpoint.reader import read_checkpoint
from lightning_pfc.checkpoint.single import load_file, save_file
from lightning_pfc.checkpoint.split_tree import split_tree
from lightning_pfc.commands.ckpt import main
from lightning_pfc.distributed import Comm
from lightning_pfc.evaluation import checkpoint_embedder
from lightning_pfc.models import reviewed
from lightning_pfc.runs.network import load_network
from tests import console
from tests.audit import watch
from tests.trainer.world import make_trainer

SMALL: dict[str, Any] = {
    "backbone": "glyphnet",
    "backbone_options": {"widths": [4, 4], "depths": [0, 0]},
    "num_classes": 9,
    "embedding_dim": 8,
    "input_size": [1, 8, 8],
    "loss": {"name": "ArcFace", "margin": 0.4},
    "optimizer": {"name": "sgd", "lr": 0.1},
}

# -- the doors: whatever opens a checkpoint


def load_from_checkpoint(path: str) -> None:
    PartialFCModule.load_from_checkpoint(path)


def embedder(path: str) -> None:
    checkpoint_embedder(path)


def network(path: str) -> None:
    load_network(path)


def resume(path: str) -> None:
    """Restores a run, as ``trainer.fit(ckpt_path=)`` does."""
    _strategy(path).load_checkpoint(path)


def _strategy(path: str) -> Any:
    """One that the warming call has set up."""
    if not _made:
        dist.init_process_group("gloo", init_method=f"file://{path}.group", rank=0, world_size=1)
        trainer = make_trainer(0, 1)
        trainer.strategy.connect(PartialFCModule(**SMALL))
        trainer.strategy.setup_environment()
        _made.append(trainer.strategy)
    return _made[0]


_made: list[Any] = []


def inspect_(path: str) -> None:
    assert main(["inspect", path]) in (0, 1)


def verify(path: str) -> None:
    assert main(["verify", path]) in (0, 1)


def read(path: str) -> None:
    read_checkpoint(Path(path))


DOORS = {
    "load_from_checkpoint": load_from_checkpoint,
    "embedder": embedder,
    "network": network,
    "resume": resume,
    "inspect": inspect_,
    "verify": verify,
    "read": read,
}
BUILDING = ("load_from_checkpoint", "embedder", "network")  # those that make a module


def through_doors(paths: dict[str, str], doors: list[str]) -> dict[str, str]:
    """What each checkpoint gives at each door: "" or an error in one line."""
    return {f"{name} {door}": said_at(door, path) for name, path in paths.items() for door in doors}


def said_at(door: str, path: str) -> str:
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            DOORS[door](path)
    except (CheckpointError, ValueError) as error:
        return str(error)
    return ""


# -- the checkpoints


def checkpoint(**hyper_parameters: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    module = PartialFCModule(**SMALL)
    module.head._ensure_storage()
    return {
        "state_dict": {key: value.clone() for key, value in module.state_dict().items()},
        "hyper_parameters": {**copy.deepcopy(dict(module.hparams)), **hyper_parameters},
        "epoch": 0,
        "global_step": 1,
        "pytorch-lightning_version": "2.6.4",
        "loops": {},
        "lightning_pfc": {"by_class": ["state_dict/head.weight"]},
    }


def write(path: Path, content: dict[str, Any], folder: bool) -> str:
    if folder:
        rest, tensors = split_tree(content, lambda key, tensor: None)
        save_folder(path, rest, tensors, Comm.single(), {"epoch": 0, "global_step": 1})
    else:
        save_file(path, content)
    return str(path)


def options(**values: Any) -> dict[str, Any]:
    return {"backbone_options": {**SMALL["backbone_options"], **values}}


def hostile(secret: Path, made: Path) -> dict[str, tuple[dict[str, Any], str]]:
    """Hyper-parameters of an attacker, and what is said of them; "" where they are simply not followed."""
    address = "http://127.0.0.1:9/weights.bin"
    return {
        "pretrained": ({"pretrained": True}, ""),
        "option pretrained": (options(pretrained=True), "backbone_options.pretrained"),
        "a configuration": (options(pretrained_cfg={"url": address}), "backbone_options.pretrained_cfg"),
        "an overlay": (options(pretrained_cfg_overlay={"file": str(secret)}), "pretrained_cfg_overlay"),
        "a cache": (options(cache_dir=str(made)), "backbone_options.cache_dir"),
        "a checkpoint": (options(checkpoint_path=str(secret)), "backbone_options.checkpoint_path"),
        "an option that nobody looked at": (options(pretrained_strict=False), "backbone_options.pretrained_strict"),
        "a path in an option": (options(act_layer=str(secret)), "backbone_options"),
        "too many blocks": (options(depths=[10**6, 0]), "more than any network has"),
        "many blocks": (options(depths=[300, 0]), "asks for it has|is missing"),
        "wide": (options(widths=[60_000, 60_000]), "has the shape|is missing"),
        "the hub": ({"backbone": "hf-hub:evil/network"}, "backbone='hf-hub:evil/network'"),
        "the hub's old name": ({"backbone": "hf_hub:evil/network"}, "not the name of an installed network"),
        "a folder": ({"backbone": f"local-dir:{secret.parent}"}, "not the name of an installed network"),
        "a path": ({"backbone": str(secret)}, "not the name of an installed network"),
        "another network": ({"backbone": "resnet10t", "backbone_options": None}, "resnet10t"),
        "rows in files": ({"head_options": {"row_folder": str(made)}}, ""),
        "rows in files, today's word": ({"head": {"row_folder": str(made), "match": "position"}}, ""),
        "another talk": ({"head_options": {"comm": 1}}, "head_options.comm"),
        "another talk, today's word": ({"head": {"comm": 1}}, "head.comm"),
        "a path in the loss": ({"loss": {"name": "ArcFace", "scale": str(secret)}}, "it sets loss to"),
        "an instantiator": ({"_instantiator": "os.system", "_class_path": "os"}, ""),
        "a class path": ({"loss": {"class_path": "os.system", "init_args": {}}}, "does not exist"),
        "classes": ({"num_classes": 10**12}, "num_classes=1000000000000"),
        "width": ({"embedding_dim": 10**9}, "embedding_dim=1000000000"),
        "pixels": ({"input_size": [3, 10**5, 10**5]}, "input_size"),
        "text": ({"hyper_parameters": "x", "num_classes": "9"}, "num_classes='9'"),
    }


@pytest.fixture(scope="module", params=["file", "folder"])
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """All checkpoints through all doors, under the hook; what came of it, and what should have."""
    folder = request.param == "folder"
    root = tmp_path_factory.mktemp("hostile")
    (root / "secrets").mkdir()
    secret, made = root / "secrets" / "weights.pth", root / "made"
    torch.save({"stem": torch.zeros(1)}, secret)
    cases = hostile(secret, made)
    for name, (values, _) in {"good": ({}, ""), **cases}.items():
        write(root / f"{name}.ckpt", checkpoint(**values), folder)
    paths = {name: str(root / f"{name}.ckpt") for name in ("good", *cases)}
    doors = list(DOORS)
    result = watch(
        "tests.unit.test_from_a_file:through_doors",
        {name: {"paths": {name: path}, "doors": doors} for name, path in paths.items()},
        readable=list(paths.values()),
        warm={"paths": {"good": paths["good"]}, "doors": doors},
        timeout=240,
        memory=24 << 30,
    )
    yield result, cases, made
    assert not made.exists()


def test_opening_a_checkpoint_does_nothing_else(seen: Any) -> None:
    result, cases, made = seen
    assert {"good", *cases} == set(result)
    for name, found in result.items():
        assert found.offences == [], name
        assert found.error == "", f"{name}: {found.message}"
        assert found.grown < 600, name  # MiB
        assert found.seconds < 60, name
    assert not made.exists()


def test_what_is_said(seen: Any) -> None:
    result, cases, _ = seen
    assert set(result["good"].value.values()) == {""}
    assert all(len(text.splitlines()) < 2 for case in result.values() for text in case.value.values())
    for name, (_, message) in cases.items():
        for door in BUILDING:
            said = result[name].value[f"{name} {door}"]
            if door == "network" and name in ("classes", "a class path"):
                assert said == "", "the head is none of its business"
            elif message == "":
                assert said == "", (name, door)
            else:
                assert re.search(message, said), (name, door, said)
                assert f"{name}.ckpt" in said
        for door in ("resume", "inspect", "verify", "read"):
            assert result[name].value[f"{name} {door}"] == "", "only what is built is reviewed"


# -- the user's own words


def test_what_the_user_says_is_followed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ckpt", checkpoint(backbone="hf-hub:somebody/network", **options(cache_dir="/x")), False)
    with pytest.raises(CheckpointError, match="Say it yourself, as backbone="):
        PartialFCModule.load_from_checkpoint(path)
    with pytest.raises(CheckpointError, match="Say it yourself, as backbone_options="):
        PartialFCModule.load_from_checkpoint(path, backbone="glyphnet")
    own = {"backbone": "glyphnet", "backbone_options": SMALL["backbone_options"]}
    module = PartialFCModule.load_from_checkpoint(path, **own)
    assert torch.equal(module.head.weight, load_file(Path(path))["state_dict"]["head.weight"])
    assert checkpoint_embedder(path, **own).input_size == (1, 8, 8)


def test_rows_go_where_the_user_says(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ckpt", checkpoint(head_options={"row_folder": str(tmp_path / "theirs")}), False)
    for word in ("head", "head_options"):
        module = PartialFCModule.load_from_checkpoint(path, **{word: {"row_folder": str(tmp_path / word)}})
        assert (tmp_path / word).is_dir()
        assert not (tmp_path / "theirs").exists()
        assert module.head.num_classes == 9


class OwnNetwork(PartialFCModule):
    """A user's class that names its networks in its own way, and one that asks the base for them."""

    def make_backbone(self, backbone: Any, input_size: Any, pretrained: bool) -> Any:
        return super().make_backbone("glyphnet" if backbone == "my/network" else backbone, input_size, pretrained)


def test_a_subclass_may_have_names_of_its_own_but_opens_no_door(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ckpt", checkpoint(backbone="my/network"), False)
    OwnNetwork.load_from_checkpoint(path)
    path = write(tmp_path / "b.ckpt", checkpoint(backbone="hf-hub:evil/network"), False)
    with pytest.raises(CheckpointError, match="hf-hub:evil/network"):
        OwnNetwork.load_from_checkpoint(path)
    path = write(tmp_path / "c.ckpt", checkpoint(**options(checkpoint_path="/etc/passwd")), False)
    with pytest.raises(CheckpointError, match="checkpoint_path"):
        OwnNetwork.load_from_checkpoint(path)


# -- nothing is forgotten


def test_every_argument_of_a_constructor_was_reviewed() -> None:
    """A new argument fails here until somebody has decided whether a file may set it."""
    module = set(inspect.signature(PartialFCModule.__init__).parameters) - {"self"}
    assert module == reviewed.MODULE_ARGUMENTS | {"pretrained"}
    head = set(inspect.signature(PartialFC.__init__).parameters) - {"self"}
    passed = {"embedding_dim", "num_classes", "loss"}
    never = {"comm", "device"}
    assert head - passed - never - set(reviewed.HEAD_OPTIONS_LEFT_OUT) <= reviewed.HEAD_OPTIONS
    assert not reviewed.HEAD_OPTIONS & never


def test_no_reviewed_option_reaches_a_file_or_a_connection() -> None:
    words = ("pretrained", "path", "dir", "file", "url", "cache", "hub", "checkpoint", "weights", "script", "device")
    own = {"grad_checkpointing", "drop_path_rate"}  # computing again instead of remembering; a share
    assert not [n for n in reviewed.BACKBONE_OPTIONS - own if any(word in n for word in words)]
    import timm

    named = set(inspect.signature(timm.create_model).parameters)
    assert not reviewed.BACKBONE_OPTIONS & named


def test_a_command_says_it_in_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ckpt", checkpoint(backbone="hf-hub:evil/network"), False)
    (tmp_path / "some.bin").write_bytes(b"is not looked at before the model")
    words = [f"ckpt_path={path}", f"+protocols.x={tmp_path / 'some.bin'}", f"output_dir={tmp_path / 'out'}"]
    done = console.run("lightning_pfc.commands.eval", *words)
    assert done.returncode > 0
    assert "Traceback" not in done.stderr
    assert "backbone='hf-hub:evil/network'" in done.stderr
