"""What makes a run quick: products in half precision where the device has them; on drawn characters fewer epochs, too.

Where it comes from: ``recipes/speedrun``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator
from typing import Any

from omegaconf import DictConfig

from lightning_pfc.distributed.jobs import step_host
from lightning_pfc.distributed.rendezvous import agree_on_text
from lightning_pfc.runs.choice_rules import Choice, short_scale

_UNCHOSEN = "32-true"  # of conf/trainer/default.yaml: another value was somebody's choice
_ACCELERATORS = ("auto", "cpu", "gpu", "cuda")  # of which it can be told what they multiply fast
_LENGTH = {f"trainer.{key}" for key in ("max_epochs", "max_steps", "max_time")}


def quick_choices(config: DictConfig, typed: Collection[str]) -> Iterator[Choice]:
    """Precision, scale, augmentation and length, where no word and no config of the user's says them.

    On several ranks the precision is that of rank 0's device: one round trip, as in
    :func:`~lightning_pfc.distributed.rendezvous.agree_on_text`.

    Args:
        config: of the run.
        typed: the keys that were typed.
    """
    if config.resume or config.ckpt_path:  # of a run that began before there were these rules
        return
    yield from precision_choice(config, typed)
    yield from short_scale(config, typed)
    if config.data.augment is None and config.data.kind is None and not {"data.augment", *_LENGTH} & set(typed):
        mild = {"name": "camera", "strength": 0.6}
        yield Choice("data.augment", mild, "pictures that are changed less are learned in fewer epochs")
        yield Choice("trainer.max_epochs", 3, "enough for them")


def precision_choice(config: DictConfig, typed: Collection[str]) -> Iterator[Choice]:
    """Precision alone, of a run that begins; arguments and round trip as of :func:`quick_choices`."""
    plain = config.trainer.precision == _UNCHOSEN and config.trainer.accelerator in _ACCELERATORS
    goes_on = config.resume or config.ckpt_path  # of a run that began before there was this rule
    if plain and not goes_on and not {"trainer", "trainer.precision"} & set(typed):
        yield Choice("trainer.precision", *_agreed(config))


def quick_precision(accelerator: str) -> tuple[str, str]:
    """The quickest precision in Lightning's words that needs no care, and why it is."""
    import torch  # takes seconds, for which --help need not wait

    from lightning_pfc.matmul.in_precision import has_fast_bfloat16

    if accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available()):
        device = "this GPU"
        has = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        device, has = "this processor", has_fast_bfloat16()
    if has:
        return "bf16-mixed", f"{device} multiplies bfloat16 faster than float32"
    return _UNCHOSEN, f"{device} has no units for bfloat16"


def _agreed(config: DictConfig) -> tuple[str, str]:
    """Of ranks on unlike machines each would find another."""

    def found_out() -> str:
        return json.dumps(quick_precision(str(config.trainer.accelerator)))

    host = os.environ.get("MASTER_ADDR") or step_host()
    found: Any = json.loads(agree_on_text(f"precision for {config.output_dir}", found_out, "trainer.precision=X", host))
    return found[0], found[1]
