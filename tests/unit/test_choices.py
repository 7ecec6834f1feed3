"""What is chosen for somebody's own pictures, and what is left alone."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from lightning_pfc.config import compose
from lightning_pfc.data import IdentityDataModule, Synthetic
from lightning_pfc.runs import quick_choices
from lightning_pfc.runs.choice_rules import Pictures, choices_for
from lightning_pfc.runs.choices import choose, told
from lightning_pfc.runs.resuming import as_it_was, earlier_run


def folder(path: Path, size: tuple[int, int], colour: bool, classes: int = 12, each: int = 3) -> Path:
    generator = np.random.default_rng(0)
    for name in range(classes):
        (path / f"c{name:02}").mkdir(parents=True)
        for place in range(each):
            pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
            pixels = pixels if colour else np.repeat(pixels[..., :1], 3, axis=2)
            Image.fromarray(pixels).save(path / f"c{name:02}" / f"{place}.png")
    return path


def chosen(*words: str) -> tuple[dict[str, object], DictConfig]:
    config = compose(list(words))
    made = choose(config, words)
    assert not made or told(made).count("\n") == len(made) + len(made.remarks)
    return {choice.key: choice.value for choice in made}, config


def test_shape_and_colour_come_from_the_pictures(tmp_path: Path) -> None:
    path = folder(tmp_path / "a", (45, 60), colour=False)
    made, config = chosen("data=folder", f"data.source.path={path}")
    assert (made["data.source.image_size"], made["data.source.channels"]) == ([48, 64], 1)
    assert (made["data.augment"], made["data.batch_size"], made["trainer.max_epochs"]) == ("affine", 8, 200)
    assert (config.model.loss.name, config.model.loss.scale) == ("ArcFace", 16.0)
    assert config.data.source.fit == "stretch"
    assert choose(config, []) == []  # as in a run that goes on: its record has plain values
    assert not OmegaConf.is_missing(config, "choices")
    large, _ = chosen("data=folder", f"data.source.path={folder(tmp_path / 'b', (300, 150), colour=True)}")
    assert large["data.source.image_size"] == [112, 64]
    assert "data.source.channels" not in large


def test_of_many_sizes_the_median_is_taken(default: DictConfig) -> None:
    """The most common of sizes that all differ is that of one picture, such as the first."""
    sizes = Counter({(500, 40): 2, **{(20 + n, 90 + 3 * n): 1 for n in range(-9, 12)}})
    pictures = Pictures(np.full(100, 10), "a", sizes, grey=True, equal=False)
    made = {choice.key: choice for choice in choices_for(pictures, default, [])}
    assert made["data.source.image_size"].value == [16, 96]
    assert made["data.source.image_size"].why == "sizes differ; 22 x 90 is the median of 23 looked at"
    pictures = Pictures(np.full(100, 10), "a", sizes + Counter({(48, 48): 9}), grey=True, equal=False)
    made = {choice.key: choice for choice in choices_for(pictures, default, [])}
    assert made["data.source.image_size"].value == [48, 48]
    assert made["data.source.image_size"].why == "most are 48 x 48 (9 of 32 looked at)"


def test_transparent_pictures_are_laid_over_white(tmp_path: Path) -> None:
    path = folder(tmp_path, (32, 32), colour=True)
    drawn = sorted(path.rglob("*.png"))
    for file in drawn:  # black below, as programs that draw leave it: equal but for the alpha
        alpha = np.asarray(Image.open(file))[..., 0]
        Image.fromarray(np.dstack([np.zeros((32, 32, 3), np.uint8), alpha])).save(file)
    made, config = chosen("data=folder", f"data.source.path={path}")
    assert (made["data.source.background"], made["data.source.channels"]) == ("white", 1)
    assert config.data.source.background == "white"
    with pytest.raises(ValueError, match="equal to the pixel"):  # the word is the user's, and then nothing is left
        chosen("data=folder", f"data.source.path={path}", "data.source.background=none")
    for file in drawn:
        Image.open(file).getchannel("A").save(file)
    assert "data.source.background" not in chosen("data=folder", f"data.source.path={path}")[0]


@pytest.mark.parametrize(
    ("each", "batch", "epochs"),
    [(1, 32, 200), (3, 64, 200), (10, 64, 180), (50, 128, 36), (100, 256, 18), (250, 256, 7), (1000, 256, 6)],
)
def test_batch_and_length_follow_from_the_pictures(each: int, batch: int, epochs: int, default: DictConfig) -> None:
    pictures = Pictures(np.full(100, each), "a", Counter({(32, 32): 1}), grey=True, equal=False)
    made = {choice.key: choice.value for choice in choices_for(pictures, default, [])}
    assert (made["data.batch_size"], made["trainer.max_epochs"]) == (batch, epochs)
    assert batch <= 100 * each / 3  # whatever is set aside, an epoch has a full one


@pytest.mark.parametrize(
    ("each", "words", "rate"),
    [
        (30, [], None),  # batches of 64
        (50, [], 4e-3),
        (100, [], 4e-3),
        (50, ["data.batch_size=64"], None),
        (30, ["data.batch_size=128"], 4e-3),
        (50, ["optimizer=sgd"], None),
        (50, ["optimizer.lr=1e-3"], None),
        (50, ["optimizer.reference_batch=64"], None),
        (50, ["preset=paper_2021"], None),
        (50, ["backbone=iresnet50"], None),
        (50, ["init_from=x"], None),
    ],
)
def test_large_batches_have_a_larger_rate(each: int, words: list[str], rate: float | None, default: DictConfig) -> None:
    pictures = Pictures(np.full(100, each), "a", Counter({(32, 32): 1}), grey=True, equal=False)
    typed, config = [word.partition("=")[0] for word in words], copy.deepcopy(default)
    config.data.batch_size = int(words[0].partition("=")[2]) if typed == ["data.batch_size"] else 256
    made = [choice for choice in choices_for(pictures, config, typed) if choice.key not in typed]
    found = [choice.value for choice in made if choice.key == "optimizer.lr"]
    assert found == ([] if rate is None else [rate])


@pytest.mark.parametrize(("identities", "margin"), [(2, 0.2), (9, 0.2), (10, 0.5), (1000, 0.5)])
def test_few_identities_have_a_small_margin(identities: int, margin: float, default: DictConfig) -> None:
    pictures = Pictures(np.full(identities, 50), "a", Counter({(32, 32): 1}), grey=True, equal=False)
    loss = next(choice for choice in choices_for(pictures, default, []) if choice.key == "loss")
    assert (loss.value.name, loss.value.scale, loss.value.margin) == ("ArcFace", 16.0, margin)
    assert (f"of {identities} identities alone" in loss.why) == (margin == 0.2)


@pytest.mark.parametrize(
    ("words", "scale"),
    [
        (["loss=adaface"], 16.0),
        (["loss.margin=0.2"], 16.0),
        (["loss=arcface", "loss.scale=64"], 64.0),
        (["loss=circle"], 256.0),  # its 256 is not the 64 of the cosine losses
        (["loss=adaface", "preset=paper_2021"], 64.0),
        (["loss=adaface", "choices=none"], 64.0),
    ],
)
@pytest.mark.parametrize("own", [True, False], ids=["own pictures", "characters"])
def test_a_loss_named_without_its_scale_has_that_of_a_short_run(
    words: list[str], scale: float, own: bool, tmp_path: Path
) -> None:
    data = ["data=folder", f"data.source.path={folder(tmp_path / 'a', (32, 32), colour=True, classes=3)}"]
    made, config = chosen(*(data if own else []), *words)
    assert config.model.loss.scale == scale
    assert made.get("loss.scale", scale) == scale
    assert ("loss.scale" in made) == (scale == 16.0)


@pytest.mark.parametrize(
    ("word", "left"),
    [
        ("loss.margin=0.2", "loss.margin"),
        ("loss=adaface", "loss.name"),
        ("data.batch_size=32", "data.batch_size"),
        ("data.kind=faces", "data.augment"),
        ("data.augment=flip", "data.augment"),
        ("trainer.max_epochs=3", "trainer.max_epochs"),
        ("data.source.image_size=112", "data.source.image_size"),
        ("backbone=iresnet50", "data.source.image_size"),
    ],
)
def test_a_typed_word_is_never_changed(word: str, left: str, tmp_path: Path) -> None:
    path = folder(tmp_path / "a", (32, 32), colour=True, classes=3)
    words = ["data=folder", f"data.source.path={path}", word]
    made, config = chosen(*words)
    assert made
    assert left not in made
    assert OmegaConf.select(config, left) == OmegaConf.select(compose(words), left)


@pytest.mark.parametrize("word", ["choices=none", "experiment=none", "experiment=insightface/ms1mv3_r50"])
def test_who_chooses_themselves_is_left_alone(word: str, tmp_path: Path) -> None:
    path = folder(tmp_path / "a", (32, 32), colour=True, classes=3)
    assert chosen("data=folder", f"data.source.path={path}", word)[0] == {}
    assert chosen("data=synthetic")[0] == {}
    assert chosen("data=folder", "data.source.path=/nowhere")[0] == {}  # said better when it is read


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ([6], "holds one identity, 'c00': there is nothing to tell it from"),
        ([2, 1], "holds 3 pictures of 2 identities, too few to train on: give 8 at least"),
        ([1] * 12, "12 identities with one picture each, so nothing shows what two"),
        ([0] * 12, "all pictures that were looked at are equal to the pixel"),
    ],
)
def test_what_nothing_can_be_learned_from_is_refused(counts: list[int], said: str, tmp_path: Path) -> None:
    for name, count in enumerate(counts):
        (tmp_path / f"c{name:02}").mkdir()
        for place in range(count or 2):
            pixels = np.full((16, 16), 7 * (name + 13 * place) % 256 if count else 9, np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"c{name:02}" / f"{place}.png")
    with pytest.raises(ValueError, match=said):
        chosen("data=folder", f"data.source.path={tmp_path}")


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (10, ("closed", 0.2, 0.0, "val/loss")),
        (40, ("open", 0.05, 0.0, "val/separation")),
        (80, ("open", 0.05, 0.05, "val/separation")),
    ],
)
def test_what_is_set_aside_follows_from_the_identities(
    classes: int, expected: tuple[str, float, float, str], tmp_path: Path
) -> None:
    words = ["data=folder", f"data.source.path={folder(tmp_path / 'a', (16, 16), colour=False, classes=classes)}"]
    _, config = chosen(*words)
    source = config.data.source
    assert (source.task, source.val_share, source.test_share, config.callbacks.checkpoint.monitor) == expected
    data = instantiate(config.data, _convert_="all")
    data.setup("fit")
    assert len(data.val_dataloader()) == 1
    assert len(data.train_dataloader()) >= 1
    own, config = chosen(*words, "data.source.test_share=0.1", "trainer.max_epochs=25")
    assert "data.source.task" not in own
    assert "callbacks.checkpoint.monitor" not in own


def test_a_person_is_told_of_few_sizes_and_uneven_identities(tmp_path: Path) -> None:
    path = folder(tmp_path / "a", (16, 16), colour=False, classes=60, each=2)
    folder(tmp_path / "b", (24, 16), colour=True, classes=1, each=90)
    (tmp_path / "b" / "c00").rename(path / "large")
    config = compose(words := ["data=folder", f"data.source.path={path}"])
    text = told(choose(config, words))
    assert "1 of 61 identities have 43% of the pictures" in text
    assert "2 sizes among the pictures looked at" in text
    assert "init_from=CHECKPOINT" in text


def test_a_run_with_choices_can_go_on(tmp_path: Path) -> None:
    """Every class that a rule chooses is one of the package's configs: a run folder may name no other."""
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "last.ckpt").touch()
    words = ["data=folder", f"data.source.path={folder(tmp_path / 'pictures', (40, 40), colour=True, classes=30)}"]
    _, config = chosen(*words, f"output_dir={run}")
    assert config.callbacks.early_stopping.patience == 4
    (run / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))
    (run / "overrides.yaml").write_text(OmegaConf.to_yaml(words))
    earlier = earlier_run([f"resume={run}"])
    assert earlier is not None
    found = as_it_was(compose([w for w in earlier.words if not w.startswith("hydra.")]), earlier, compose)
    assert found.callbacks == config.callbacks
    assert found.choices == "made"


def test_kinds_of_pictures() -> None:
    source = Synthetic(num_classes=4, images_per_class=2, image_size=8)
    for kind, flip in (("faces", "sum"), ("objects", "sum"), ("characters", "none"), ("spectrograms", "none")):
        data = IdentityDataModule(source, kind=kind)
        data.setup("fit")
        assert data.preprocessing is None or data.preprocessing.flip == flip
    with pytest.raises(ValueError, match="kind='cats' is unknown; use faces, objects, characters, spectrograms"):
        IdentityDataModule(source, kind="cats")
    with pytest.raises(ValueError, match="leave one of them out"):
        IdentityDataModule(source, kind="faces", augment="none")


SHORT = ("data.augment", "trainer.max_epochs")


def on(monkeypatch: pytest.MonkeyPatch, processor: bool, gpu: bool | None = None) -> None:
    """A machine with or without units for bfloat16; without a GPU where that is None."""
    monkeypatch.setattr("lightning_pfc.matmul.in_precision.has_fast_bfloat16", lambda: processor)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or gpu)


@pytest.fixture(scope="module")
def default() -> DictConfig:
    return compose([])


@pytest.mark.parametrize(
    ("processor", "gpu", "accelerator", "precision", "why"),
    [
        (True, None, "auto", "bf16-mixed", "this processor multiplies bfloat16 faster"),
        (False, None, "auto", "32-true", "this processor has no units"),
        (True, False, "auto", "32-true", "this GPU has no units"),
        (False, True, "auto", "bf16-mixed", "this GPU multiplies"),
        (False, True, "cpu", "32-true", "this processor has no units"),
        (False, True, "gpu", "bf16-mixed", "this GPU"),
        (True, None, "gpu", "32-true", "this GPU has no units"),  # the Trainer says that there is none
    ],
)
def test_the_default_run_takes_what_the_device_multiplies_fast(
    processor: bool,
    gpu: bool | None,
    accelerator: str,
    precision: str,
    why: str,
    default: DictConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on(monkeypatch, processor, gpu)
    config = copy.deepcopy(default)
    config.trainer.accelerator = accelerator
    made = choose(config, [])
    assert [choice.key for choice in made] == ["trainer.precision", "loss.scale", *SHORT]
    assert why in made[0].why
    assert f"trainer.precision   {precision}" in told(made)
    assert told(made).startswith("Chosen for a short run, where nothing was said (choices=none: nothing is):")
    assert (config.trainer.precision, config.model.loss.scale, config.choices) == (precision, 16.0, "made")
    assert (config.data.augment, config.trainer.max_epochs) == ({"name": "camera", "strength": 0.6}, 3)
    assert "data.augment        camera 0.6  " in told(made)
    assert choose(config, []) == []  # its record has plain values


@pytest.mark.parametrize(
    ("word", "made"),
    [
        ("trainer.precision=32-true", ["loss.scale", *SHORT]),
        ("trainer=default", ["loss.scale", *SHORT]),
        ("profile=slurm", ["trainer.precision", "loss.scale", *SHORT]),
        ("loss.scale=64", ["trainer.precision", *SHORT]),
        ("loss=cosface", ["trainer.precision", "loss.scale", *SHORT]),
        ("loss.margin=0.4", ["trainer.precision", "loss.scale", *SHORT]),
        ("preset=paper_2021", ["trainer.precision", *SHORT]),
        ("data.augment=null", ["trainer.precision", "loss.scale"]),
        ("trainer.max_epochs=4", ["trainer.precision", "loss.scale"]),
        ("trainer.max_steps=-1", ["trainer.precision", "loss.scale"]),
        ("head.sample_rate=0.1", ["trainer.precision", "loss.scale", *SHORT]),
        ("experiment=glyphs", []),
    ],
)
def test_a_word_wins_over_what_makes_the_default_run_quick(
    word: str, made: list[str], default: DictConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, processor=True)
    config = copy.deepcopy(default)  # the words say what it says already
    assert [choice.key for choice in choose(config, [word])] == made
    assert config.trainer.precision == ("bf16-mixed" if "trainer.precision" in made else "32-true")
    assert config.loss.scale == (16.0 if "loss.scale" in made else 64.0)


@pytest.mark.parametrize(
    ("key", "value", "made"),
    [
        ("trainer.precision", "16-mixed", ["loss.scale", *SHORT]),  # of a config of the user's
        ("trainer.accelerator", "tpu", ["loss.scale", *SHORT]),
        ("data.augment", "flip", ["trainer.precision", "loss.scale"]),
        ("data.kind", "characters", ["trainer.precision", "loss.scale"]),
        ("ckpt_path", "runs/x/checkpoints/last.ckpt", []),
        ("choices", "none", []),
    ],
)
def test_a_config_wins_over_what_makes_the_default_run_quick(
    key: str, value: str, made: list[str], default: DictConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, processor=True)
    config = copy.deepcopy(default)
    OmegaConf.update(config, key, value)
    assert [choice.key for choice in choose(config, [])] == made
    assert OmegaConf.select(config, key) == value


@pytest.mark.parametrize("processor", [True, False])
def test_own_pictures_have_the_precision_of_the_default_run(
    processor: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, processor)
    words = ["data=folder", f"data.source.path={folder(tmp_path / 'a', (16, 16), colour=False)}"]
    expected = "bf16-mixed" if processor else "32-true"
    made, config = chosen(*words)
    assert (made["trainer.precision"], config.trainer.precision) == (expected, expected)
    assert f"precision: {expected}" in OmegaConf.to_yaml(config.trainer)  # in its record, too
    for word in ("trainer.precision=32-true", "trainer=default", "ckpt_path=x.ckpt", "fit=false"):
        made, config = chosen(*words, word)
        assert "data.batch_size" in made
        assert "trainer.precision" not in made
        assert config.trainer.precision == "32-true"


def test_a_run_with_choices_keeps_its_precision_on_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["data=folder", f"data.source.path={folder(tmp_path / 'pictures', (16, 16), colour=False)}"]
    for number, processor in enumerate((True, False)):
        run = tmp_path / f"run{number}"
        (run / "checkpoints").mkdir(parents=True)
        (run / "checkpoints" / "last.ckpt").touch()
        on(monkeypatch, processor)
        _, config = chosen(*words, f"output_dir={run}")
        (run / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))
        (run / "overrides.yaml").write_text(OmegaConf.to_yaml(words))
        on(monkeypatch, not processor)
        earlier = earlier_run([f"resume={run}"])
        assert earlier is not None
        found = as_it_was(compose([w for w in earlier.words if not w.startswith("hydra.")]), earlier, compose)
        assert choose(found, earlier.words) == []
        assert found.trainer.precision == ("bf16-mixed" if processor else "32-true")


def test_every_rank_takes_the_precision_of_rank_0(default: DictConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def agree(what: str, choose: object, way_out: str, host: str | None = None) -> str:
        asked.append((what, way_out))
        return '["32-true", "rank 0 has no units"]'

    on(monkeypatch, processor=True)
    monkeypatch.setattr(quick_choices, "agree_on_text", agree)
    config = copy.deepcopy(default)
    config.output_dir = "x"
    assert choose(config, [])[0].why == "rank 0 has no units"
    assert (config.trainer.precision, asked) == ("32-true", [("precision for x", "trainer.precision=X")])
    choose(copy.deepcopy(default), ["trainer.precision=32-true"])
    assert len(asked) == 1
