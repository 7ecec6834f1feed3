"""What the sources of the published recipes say, read from clones of their repositories; nothing of them is run."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

Fields = dict[str, Any]
INSIGHTFACE, ONEFLOW, CVLFACE = "deepinsight/insightface", "Oneflow-Inc/oneflow_face", "mk-minchul/CVLface"
PLSC, TFACE = "PaddlePaddle/PLSC", "Tencent/TFace"
COMMITS = {INSIGHTFACE: "7fadd420", ONEFLOW: "6c1f484", CVLFACE: "d3d09c9", PLSC: "bd0c824", TFACE: "171ec14"}
_MARGINS = {(1.0, 0.5, 0.0): ("arcface", 0.5), (1.0, 0.0, 0.4): ("cosface", 0.4)}
_NETWORKS = {"mbf": "mobilefacenet", "mobilefacenet_base": "mobilefacenet", "mbf_large": "mobilefacenet_large"}
_PLSC_NETWORKS = {
    "face_vit_base": "FaceViT_base_patch9_112",
    "face_vit_tiny": "FaceViT_tiny_patch9_112",
    "iresnet50": "IResNet50",
    "iresnet100": "IResNet100",
    "mobilefacenet": "MobileFaceNet",
}
_SIZES = {"t": "tiny", "s": "small", "b": "base", "l": "large", "h": "huge"}


class Sources:
    """Files of clones, at the commits that the recipes name.

    Args:
        folder: holds ``OWNER+NAME`` (or ``OWNER+NAME/repo``), a clone of each repository.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def text(self, repository: str, path: str) -> str:
        """A file of a repository."""
        clone = self.folder / repository.replace("/", "+")
        clone = clone / "repo" if (clone / "repo").exists() else clone
        where = f"{COMMITS[repository]}:{path}"
        return subprocess.run(
            ["git", "-C", str(clone), "show", where], capture_output=True, text=True, check=True
        ).stdout

    def python(self, repository: str, path: str, **given: str) -> Fields:
        """What a Python file assigns to ``config.NAME``; of ``if NAME == "x"``, the branch of the given name."""
        found: Fields = {}
        _assigned(ast.parse(self.text(repository, path)).body, given, found)
        return found

    def yaml(self, repository: str, path: str) -> Fields:
        """A YAML file."""
        content: Fields = yaml.safe_load(self.text(repository, path))
        return content


def _assigned(body: list[ast.stmt], given: Mapping[str, str], found: Fields) -> None:
    for node in body:
        if isinstance(node, ast.Assign) and isinstance(target := node.targets[0], ast.Attribute):
            value = _value(node.value, found)
            if value is not None:
                found[target.attr] = value
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Compare):
            name = ast.unparse(node.test.left).removeprefix("config.")
            matches = given.get(name) == _value(node.test.comparators[0])
            _assigned(node.body if matches else node.orelse, given, found)
        elif isinstance(node, ast.FunctionDef):
            if node.name == "lr_step_func":
                found["milestones"] = _milestones(ast.unparse(node))
            _assigned(node.body, given, found)


def _value(node: ast.expr, found: Mapping[str, Any] | None = None) -> Any:
    """A literal, an earlier ``config.NAME``, products and whole quotients of such; None for what had to be run."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult | ast.FloorDiv):
        left, right = _value(node.left, found), _value(node.right, found)
        if left is None or right is None:
            return None
        return left * right if isinstance(node.op, ast.Mult) else left // right
    if isinstance(node, ast.Attribute):
        return (found or {}).get(node.attr)
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _milestones(text: str) -> list[int]:
    """Epochs, counted from 0, at which a step function first lowers the rate."""
    numbers = [int(n) for n in re.findall(r"\d+", text[text.index("[m for m in [") : text.index("] if m")])]
    return [n - 1 for n in numbers] if "m - 1 <= epoch" in text else numbers


def network(name: str) -> str:
    """This package's name of a network."""
    name = name.lower()
    if name in _NETWORKS:
        return _NETWORKS[name]
    if match := re.match(r"(?:r|ir_?|iresnet)(\d+)", name):
        return f"iresnet{match[1].replace('101', '100')}"
    if match := re.match(r"(?:face)?vit_([tsblh])", name):
        return f"face_vit_{_SIZES[match[1]]}"
    return name


def oneflow(sources: Sources, name: str) -> Fields:
    """A file of oneflow_face; CASIA is its base file with that data set."""
    if name == "graph_ms1mv3_mbf":
        c = sources.python(INSIGHTFACE, "recognition/arcface_oneflow/configs/ms1mv3_mbf.py")
    elif name == "casia_r50":
        c = {**sources.python(ONEFLOW, "configs/base.py", dataset="webface"), "device_num_per_node": None}
    else:
        file = {"emore_r100": "face_emore_r100", "ms1mv3_r100": "ms1V3_r100"}.get(name, name)
        c = sources.python(ONEFLOW, f"configs/{file}.py")
    return {
        "loss": c["loss"],
        "network": network(c["network"]),
        "rate": c["sample_rate"],
        "lr": c["lr"],
        "batch": c["batch_size"],
        "gpus": c.get("device_num_per_node"),
        "momentum": c["momentum"],
        "weight_decay": c["weight_decay"],
        "epochs": c["num_epoch"],
        "milestones": c["decay_epoch"],
        "precision": "16-mixed" if c["fp16"] else "32-true",
        "embedding": c["embedding_size"],
        "classes": c["num_classes"],
        "images": c["num_image"] if isinstance(c["num_image"], int) else None,
    }


def mxnet(sources: Sources, name: str) -> Fields:
    """Of partial_fc/mxnet/default.py; losses and networks stand in the names of its runs."""
    dataset, net = name.rsplit("_", 1)
    loss = "arcface" if dataset == "emore" else "cosface"
    dataset = {"glint360k_8gpu": "glint360k_8GPU", "glint360k_16gpu": "glint360k_16GPU"}.get(dataset, dataset)
    c = sources.python(INSIGHTFACE, "recognition/partial_fc/mxnet/default.py", loss_name=loss, dataset=dataset)
    gpus = 16 if "16" in dataset else 8
    batch = c["batch_size"] * gpus
    return {
        "loss": loss,
        "margin": c["loss_m2"] if loss == "arcface" else c["loss_m3"],
        "scale": c["loss_s"],
        "network": network(net),
        "rate": c["sample_ratio"],
        "lr": c["backbone_lr"],
        "batch": c["batch_size"],
        "gpus": gpus,
        "steps": c["max_update"],
        "milestone_images": [int(step) * batch for step in c["lr_steps"].split(",")],
        "precision": "16-mixed" if c["fp16"] else "32-true",
        "embedding": c["embedding_size"],
        "classes": c["num_classes"],
        "clip": None,
    }


def vpl(sources: Sources, name: str) -> Fields:
    """InsightFace's VPL; its trainer's rule is lr for each 512 images of the global batch."""
    folder = "recognition/vpl"
    c = sources.python(INSIGHTFACE, f"{folder}/configs/base.py")
    c |= sources.python(INSIGHTFACE, f"{folder}/configs/example_ms1mv3.py")
    trainer = sources.text(INSIGHTFACE, f"{folder}/train.py")
    run = sources.text(INSIGHTFACE, f"{folder}/run.sh")
    gpus = int(re.findall(r"nproc_per_node=(\d+)", run)[0])
    return {
        "loss": "vpl",
        "network": network(c["network"]),
        "rate": c["sample_rate"],
        "lr": c["lr"] / 512 * c["batch_size"] * gpus,
        "batch": c["batch_size"],
        "gpus": gpus,
        "momentum": c["momentum"],
        "weight_decay": c["weight_decay"],
        "epochs": c["num_epoch"],
        "milestones": c["milestones"],
        "precision": "16-mixed" if c["fp16"] else "32-true",
        "embedding": c["embedding_size"],
        "classes": c["num_classes"],
        "images": c["num_image"],
        "clip": float(re.findall(r"clip_grad_norm_\(backbone.parameters\(\), max_norm=(\d+)", trainer)[0]),
        "share": c["vpl"]["lambda"],
        "start": c["vpl"]["start_iters"],
        "lifetime": c["vpl"]["allowed_delta"],
    }


def cvlface(sources: Sources, name: str) -> Fields:
    """CVLface: what a script names, or an optimizer's file for the small ViT."""
    folder = "cvlface/research/recognition/code/run_v1"
    vit = "vit" in name
    script = "run_adaface_ir101_webface4m" if name.endswith("r100") else "run_adaface_ir50_casia"
    words = {} if vit else _words(sources.text(CVLFACE, f"{folder}/scripts/examples/{script}.sh"))
    optimizer = f"{name.rsplit('_', 1)[1]}.yaml" if vit else words["optims"].removeprefix("configs/")
    o = sources.yaml(CVLFACE, f"{folder}/optims/configs/{optimizer}")
    loss = sources.yaml(CVLFACE, f"{folder}/losses/configs/adaface.yaml")
    found: Fields = {
        "loss": loss["margin_loss_name"],
        "margin": loss["m"],
        "h": loss["h"],
        "t_alpha": loss["t_alpha"],
        "network": "face_vit_small",
        "optimizer": o["optimizer"],
        "lr": o["lr"],
        "weight_decay": o["weight_decay"],
        "epochs": o["num_epoch"],
        "warmup": o["warmup_epoch"],
        "clip": o["max_grad_norm"],
        "precision": sources.yaml(CVLFACE, f"{folder}/trainers/configs/default.yaml")["precision"],
    }
    if vit:
        return found | {"scheduler": {"poly_2": "polynomial"}.get(o["scheduler"], o["scheduler"])}
    data = sources.yaml(CVLFACE, f"{folder}/dataset/{words['dataset']}")
    augment = sources.yaml(CVLFACE, f"{folder}/data_augs/{words['data_augs']}")
    classifier = sources.yaml(CVLFACE, f"{folder}/classifiers/{words['classifiers']}")
    model = sources.yaml(CVLFACE, f"{folder}/models/{words['models']}")
    net = sources.text(CVLFACE, f"{folder}/models/iresnet/model.py")
    return found | {
        "network": network(model["name"]),
        "dropout": float(re.findall(r"Dropout\(([\d.]+)\)", net)[0]),
        "rate": classifier["sample_rate"],
        "batch": int(words["trainers.batch_size"]),
        "gpus": int(words["trainers.num_gpu"]),
        "precision": words["trainers.precision"],
        "milestones": o["lr_milestones"],
        "momentum": o["momentum"],
        "augment": {"basic": "adaface"}[augment["augmentation_version"]],
        "classes": data["num_classes"],
        "images": data["num_image"],
    }


def _words(script: str) -> dict[str, str]:
    return {key: value.strip("'\"") for key, value in re.findall(r"([\w.]+)=(\S+)", script)}


def tface(sources: Sources, name: str) -> Fields:
    """TFace's recognition/train.yaml."""
    c = sources.yaml(TFACE, "recognition/train.yaml")
    return {
        "loss": "cosface",
        "margin": c["DATASETS"][0]["margin"],
        "scale": c["DATASETS"][0]["scale"],
        "network": network(c["BACKBONE_NAME"]),
        "lr": c["LRS"][0],
        "batch": c["DATASETS"][0]["batch_size"],
        "momentum": c["MOMENTUM"],
        "weight_decay": c["WEIGHT_DECAY"],
        "epochs": c["NUM_EPOCH"],
        "milestones": c["STAGES"],
        "precision": "16-mixed" if c["AMP"] else "32-true",
        "embedding": c["EMBEDDING_SIZE"],
    }


def plsc(sources: Sources, name: str) -> Fields | None:
    """A file of PLSC 2.4; None for those of 2.2, which has docs only."""
    if name.startswith("v22"):
        return None
    network_name, dataset, rest = name.partition("_webface42m_") if "webface42m" in name else name.partition("_ms1mv3_")
    parts = {"_webface42m_": "WebFace42M", "_ms1mv3_": "MS1MV3", "cosface": "CosFace", "arcface": "ArcFace"}
    loss_name, rate = rest.split("_")
    more = {"face_vit_base": "_droppath005_mask005", "face_vit_tiny": "_droppath005_mask0"}.get(network_name, "")
    file = f"{_PLSC_NETWORKS[network_name]}_{parts[dataset]}_{parts[loss_name]}_{rate}{more}_1n8c_dp_mp_fp16o1"
    c = sources.yaml(PLSC, f"task/recognition/face/configs/{file}.yaml")
    margin = c["Loss"]["Train"][0]["MarginLoss"]
    loss, m = _MARGINS[float(margin["m1"]), float(margin["m2"]), float(margin["m3"])]
    model, optimizer, schedule = c["Model"], c["Optimizer"], c["LRScheduler"]
    return {
        "loss": loss,
        "margin": m,
        "scale": margin["s"],
        "network": network(re.sub("^FaceViT", "vit", model["name"])),
        "rate": model["pfc_config"]["sample_ratio"],
        "optimizer": {"Momentum": "sgd", "AdamW": "adamw"}[optimizer["name"]],
        "lr": schedule["learning_rate"],
        "warmup": schedule.get("warmup_epochs", schedule.get("warmup_steps", 0)),
        "weight_decay": float(optimizer["weight_decay"]),
        "batch": c["DataLoader"]["Train"]["sampler"]["batch_size"],
        "gpus": 8,
        "accumulate": c["Global"]["accum_steps"],
        "epochs": c["Global"]["epochs"],
        "seed": c["Global"]["seed"],
        "clip": optimizer["grad_clip"]["clip_norm"],
        "precision": "16-mixed" if c["FP16"]["level"] == "O1" else "32-true",
        "embedding": model["num_features"],
        "classes": model["class_num"],
        "drop_path": model.get("drop_path_rate"),
    }


def insightface(sources: Sources, name: str) -> Fields | None:
    """A file of arcface_torch; None for the two that are documented without one."""
    if name in ("casia_r50", "wf600k_r50"):
        return None
    folder = "recognition/arcface_torch/configs"
    c = sources.python(INSIGHTFACE, f"{folder}/base.py") | sources.python(INSIGHTFACE, f"{folder}/{name}.py")
    loss, margin = _MARGINS[tuple(map(float, c["margin_list"]))]  # type: ignore[index]
    return {
        "loss": loss,
        "margin": margin,
        "network": network(c["network"]),
        "rate": c["sample_rate"],
        "filter": c.get("interclass_filtering_threshold") or None,
        "optimizer": c.get("optimizer", "sgd"),
        "lr": c["lr"],
        "batch": c["batch_size"],
        "accumulate": c.get("gradient_acc", 1),
        "momentum": c["momentum"] if c.get("optimizer", "sgd") == "sgd" else None,
        "weight_decay": c["weight_decay"],
        "epochs": c["num_epoch"],
        "warmup": max(c.get("warmup_epoch", 0), 0),
        "precision": "16-mixed" if c["fp16"] else "32-true",
        "embedding": c["embedding_size"],
        "classes": c["num_classes"],
        "images": c["num_image"],
        "seed": c["seed"],
    }


READERS: dict[str, Callable[[Sources, str], Fields | None]] = {
    "insightface": insightface,
    "plsc": plsc,
    "oneflow": oneflow,
    "mxnet": mxnet,
    "vpl": vpl,
    "cvlface": cvlface,
    "tface": tface,
}


def read(sources: Sources, recipe: str) -> Fields | None:
    """What the source of a recipe says, by this package's names of fields; None where it has no file."""
    group, _, name = recipe.partition("/")
    return READERS[name.partition("_")[0] if group == "other" else group](sources, name)
