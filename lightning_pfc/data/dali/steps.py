"""The steps of an augmentation that DALI does: which numbers each image is given, and which operators they go to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_pfc.data.augment import Augment, Pipeline, RandomFlip
from lightning_pfc.data.counter import UInts
from lightning_pfc.data.effects import LUMA, Blur, Effect, Flip, Grey, HueSaturation, LowResolution

Shape = tuple[int, int, int]
Numbers = NDArray[Any]


class Operation(NamedTuple):
    """How DALI does an effect.

    Attributes:
        given: names of the numbers that each image is given.
        draw: an effect, (b,) keys and the (C, H, W) of pictures to these numbers, (b, ...) each.
        apply: the module of DALI, pictures (HWC, float32 in 0..255), their numbers, and the (C, H, W), to pictures.
        colours: whether grey pictures stay as they are.
    """

    given: tuple[str, ...]
    draw: Callable[[Any, UInts, Shape], tuple[Numbers, ...]]
    apply: Callable[[Any, Any, dict[str, Any], Shape], Any]
    colours: bool = False


def _draw_low_resolution(effect: LowResolution, keys: UInts, shape: Shape) -> tuple[Numbers, ...]:
    return (np.asarray(effect.draw(keys, *shape[1:]), dtype=np.float32),)


def _low_resolution(dali: Any, images: Any, given: dict[str, Any], shape: Shape) -> Any:
    small = dali.fn.resize(images, size=given["size"], antialias=True)
    return dali.fn.resize(small, size=[float(shape[1]), float(shape[2])])


def _draw_blur(effect: Blur, keys: UInts, shape: Shape) -> tuple[Numbers, ...]:
    return (np.asarray(effect.windows, dtype=np.int32)[effect.draw(keys).numpy()],)


def _blur(dali: Any, images: Any, given: dict[str, Any], shape: Shape) -> Any:
    return dali.fn.gaussian_blur(images, window_size=given["window"])  # its sigma is that of Blur


def _draw_hue_saturation(effect: HueSaturation, keys: UInts, shape: Shape) -> tuple[Numbers, ...]:
    return (effect.draw(keys).numpy(),)


def _hue_saturation(dali: Any, images: Any, given: dict[str, Any], shape: Shape) -> Any:
    # Not fn.hsv, which turns the other way and whose axes differ in the third decimal.
    return dali.math.clamp(dali.fn.coord_transform(images, M=given["matrix"]), 0.0, 255.0)


def _draw_nothing(effect: Effect, keys: UInts, shape: Shape) -> tuple[Numbers, ...]:
    return ()


def _grey(dali: Any, images: Any, given: dict[str, Any], shape: Shape) -> Any:
    return dali.fn.coord_transform(images, M=[*LUMA, *LUMA, *LUMA])


# Every one of them treats left and right alike, so mirroring may come last, wherever its step stands.
OPERATIONS: dict[type, Operation] = {
    LowResolution: Operation(("size",), _draw_low_resolution, _low_resolution),
    Blur: Operation(("window",), _draw_blur, _blur),
    HueSaturation: Operation(("matrix",), _draw_hue_saturation, _hue_saturation, colours=True),
    Grey: Operation((), _draw_nothing, _grey, colours=True),
}


def steps_of(augment: Augment) -> tuple[Any, ...]:
    """The steps of an augmentation.

    Raises:
        ValueError: if DALI cannot do one of them.
    """
    steps: tuple[Any, ...] = augment.steps if isinstance(augment, Pipeline) else (augment,)
    for step in steps:
        # By the very type: a subclass may do something else.
        if type(step) is not RandomFlip and type(step) is not Flip and type(step) not in OPERATIONS:
            known = ", ".join([Flip.__name__, *(kind.__name__ for kind in OPERATIONS)])
            raise ValueError(
                f"loader='dali' cannot do {type(step).__name__}. It does augment='none', 'flip' and "
                f"'insightface_dali', and a Pipeline of {known}: choose one of these, or leave loader out."
            )
    return steps


def operations_of(augment: Augment, shape: Shape) -> list[tuple[int, Operation]]:
    """What DALI does before it mirrors, each with the number of its step."""
    found = ((number, OPERATIONS.get(type(step))) for number, step in enumerate(steps_of(augment)))
    return [(number, each) for number, each in found if each is not None and (shape[0] == 3 or not each.colours)]


def draw(augment: Augment, keys: UInts, shape: Shape) -> dict[str, Numbers]:
    """What DALI is told about each image of a batch: what the plain augmentation draws for it.

    Args:
        augment: an augmentation of steps that DALI does.
        keys: (b,) uint64, one per image.
        shape: (C, H, W) of the images.

    Returns:
        ``mirror`` (b,) int32; and for each other step ``<its number>_chosen`` (b,) bool and its numbers, (b, ...).
    """
    steps = steps_of(augment)
    streams = augment.streams(keys) if isinstance(augment, Pipeline) else [keys]
    mirror = np.zeros(len(keys), dtype=bool)
    for step, own in zip(steps, streams, strict=True):
        if isinstance(step, Flip | RandomFlip):
            mirror ^= step.chosen(own)
    out: dict[str, Numbers] = {"mirror": mirror.astype(np.int32)}
    for number, operation in operations_of(augment, shape):
        step, own = steps[number], streams[number]
        out[f"{number}_chosen"] = step.chosen(own)
        drawn = operation.draw(step, step.inner(own), shape)
        out.update({f"{number}_{name}": values for name, values in zip(operation.given, drawn, strict=True)})
    return out
