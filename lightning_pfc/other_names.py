"""What others call the networks of this package: for the answer to a name that does not exist."""

from __future__ import annotations

import re

_SIZES = {"t": "tiny", "s": "small", "b": "base", "l": "large", "h": "huge"}
_RESIDUAL = re.compile(r"(?:r|ir|iresnet)[_-]?(18|34|50|100|101|200)")
_TRANSFORMER = re.compile(r"(?:face_?)?vit_?([tsblh])(?:_.*)?")
_MOBILE = {"mbf": "mobilefacenet", "mbf_large": "mobilefacenet_large", "mobileface": "mobilefacenet"}


def own_name(name: str) -> str | None:
    """The backbone of this package that InsightFace's scripts and papers on faces call ``name``; None if there is none.

    ``r50`` is IResNet-50, not torchvision's or timm's ResNet-50, which is another network.
    """
    name = name.lower()
    if name in _MOBILE:
        return _MOBILE[name]
    if match := _RESIDUAL.fullmatch(name):
        return f"iresnet{match[1].replace('101', '100')}"
    if match := _TRANSFORMER.fullmatch(name):
        return f"face_vit_{_SIZES[match[1]]}"
    return None
