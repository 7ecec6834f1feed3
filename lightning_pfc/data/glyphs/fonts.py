"""Which typefaces there are on this machine: presets of packages, designs and files.

A *design* is a typeface as its designer drew it. Weights of it, and its regional cuts (the same design with the forms
of characters that one region writes), are further pictures of a class, never a second design.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lightning_pfc.data.entries import is_hidden
from lightning_pfc.storage.enclosure import Enclosure
from lightning_pfc.storage.regular import open_file

_log = logging.getLogger(__name__)

INSTALL_HINT = 'pip install "lightning-pfc[glyphs]"'

# Unified ideographs and Hangul syllables. The compatibility block is left out: its characters are others' doubles.
_HAN = ((0x3400, 0x4DC0), (0x4E00, 0xA000))
_HAN_BEYOND = ((0x20000, 0x2EBF0), (0x30000, 0x323B0))
_HANGUL = ((0xAC00, 0xD7A4),)


@dataclass(frozen=True, kw_only=True)
class Typeface:
    """One face to draw with.

    Attributes:
        design: the design it belongs to, such as "Noto Sans".
        path: its font file.
        face: its number within a collection.
        heldout: whether its design is never trained on.
    """

    design: str
    path: Path
    face: int = 0
    heldout: bool = False

    def digest(self) -> str:
        """SHA-256 of the font file: the version that counts."""
        with open_file(self.path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


@dataclass(frozen=True, kw_only=True)
class FontSet:
    """What a data set is drawn from.

    Attributes:
        name: the preset.
        faces: the typefaces, trained designs first.
        ranges: half-open ranges of code points to try.
        missing: packages of the preset that are not installed.
        version: further things that the pictures depend on, such as the Unicode version of a range.
    """

    name: str
    faces: tuple[Typeface, ...]
    ranges: tuple[tuple[int, int], ...]
    missing: tuple[str, ...] = ()
    version: str = ""
    designs: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        names = dict.fromkeys(f.design for f in self.faces if not f.heldout)
        held = dict.fromkeys(f.design for f in self.faces if f.heldout)
        if both := set(names) & set(held):
            raise ValueError(f"designs {sorted(both)} are both trained and held out; a design is one or the other.")
        object.__setattr__(self, "designs", (*names, *held))

    @property
    def heldout_designs(self) -> tuple[str, ...]:
        """The designs that are never trained on."""
        return tuple(dict.fromkeys(f.design for f in self.faces if f.heldout))

    @property
    def trained(self) -> tuple[str, ...]:
        """The designs to train on; two at least make pairs across designs."""
        return tuple(dict.fromkeys(f.design for f in self.faces if not f.heldout))


def _digest(file: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for block in file:
        digest.update(block)
    return digest.hexdigest()


def _package_dir(name: str) -> Path | None:
    """The folder of an installed package, found without importing it (some draw in half of matplotlib)."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def pip_fonts() -> FontSet:
    """Noto Sans and Noto Serif in four regional cuts (OFL), with IPAex Gothic (IPA licence) held out: wheels of PyPI.

    IPAex Gothic comes from another foundry and shares no outline with the Noto families: of the small font wheels it is
    the one whose pictures are least like those of Noto Sans (mean correlation of 32 x 32 pixels of the same character
    0.66, against 0.72 for WenQuanYi Micro Hei), and its licence is stated where it is.
    """
    faces: list[Typeface] = []
    missing: list[str] = []
    for region in ("zh-cn", "zh-tw", "jp", "ko"):
        folder = _package_dir(f"pylopdf_fonts_{region.replace('-', '_')}")
        if folder is None:
            missing.append(f"pylopdf-fonts-{region}")
            continue
        for design, pattern in (("Noto Sans", "NotoSans*-Regular.otf"), ("Noto Serif", "NotoSerif*-Regular.otf")):
            faces.extend(Typeface(design=design, path=path) for path in sorted(folder.glob(pattern)))
    if (folder := _package_dir("matplotlib_fontja")) is not None and (path := folder / "fonts" / "ipaexg.ttf").exists():
        faces.append(Typeface(design="IPAex Gothic", path=path, heldout=True))
    else:
        missing.append("matplotlib-fontja")
    return FontSet(name="pip", faces=tuple(faces), ranges=(*_HAN, *_HANGUL), missing=tuple(missing))


# file name -> (design, faces of a collection that are regional cuts, Debian package)
_DEBIAN: dict[str, tuple[str, Sequence[int], str]] = {
    "NotoSansCJK-Regular.ttc": ("Noto Sans", range(5), "fonts-noto-cjk"),
    "NotoSansCJK-Bold.ttc": ("Noto Sans", range(5), "fonts-noto-cjk"),
    "NotoSerifCJK-Regular.ttc": ("Noto Serif", range(5), "fonts-noto-cjk"),
    "NotoSerifCJK-Bold.ttc": ("Noto Serif", range(5), "fonts-noto-cjk"),
    "wqy-zenhei.ttc": ("WenQuanYi Zen Hei", (0,), "fonts-wqy-zenhei"),
    "DroidSansFallbackFull.ttf": ("Droid Sans Fallback", (0,), "fonts-droid-fallback"),
    "uming.ttc": ("AR PL UMing", (0, 1, 2), "fonts-arphic-uming"),
    "ukai.ttc": ("AR PL UKai", (0, 1, 2), "fonts-arphic-ukai"),
}
_DEBIAN_HELDOUT = "AR PL UKai"
FONT_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts")


def debian_fonts(folders: Sequence[str | os.PathLike[str]] = FONT_FOLDERS) -> FontSet:
    """Six designs of five Debian packages (82 MB): five trained, and AR PL UKai, a brush hand, held out.

    Args:
        folders: where to look for font files, at any depth.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        for path in _font_files(Path(folder).expanduser()):
            found.setdefault(path.name, path)
    faces = [
        Typeface(design=design, path=found[name], face=number, heldout=design == _DEBIAN_HELDOUT)
        for name, (design, numbers, _) in _DEBIAN.items()
        if name in found
        for number in numbers
    ]
    faces.sort(key=lambda face: face.heldout)
    missing = dict.fromkeys(package for name, (_, _, package) in _DEBIAN.items() if name not in found)
    return FontSet(name="large", faces=tuple(faces), ranges=(*_HAN, *_HANGUL, *_HAN_BEYOND), missing=tuple(missing))


def _font_files(root: Path) -> list[Path]:
    """Font files of a folder, at any depth: regular ones that lie in it; others are passed over and said."""
    inside = Enclosure(root)
    found: list[Path] = []
    for folder, _, names in os.walk(root):
        for name in sorted(names):
            path = Path(folder, name)
            if path.suffix.lower() not in (".ttf", ".ttc") or is_hidden(name) or name not in _DEBIAN:
                continue
            if inside.holds(str(path.relative_to(root))):
                found.append(path)
            else:
                _log.warning("%s is no regular file below %s: not taken for a font.", path, root)
    return sorted(found)


def matplotlib_fonts() -> FontSet:
    """DejaVu and STIX, which matplotlib brings: letters, digits and signs of many scripts, no Han, no Hangul.

    DejaVu Sans Mono counts as a cut of DejaVu Sans. Many characters here look the same (Latin, Greek and Cyrillic A); a
    picture that two characters share is dropped when the store is built.
    """
    folder = _package_dir("matplotlib")
    fonts = folder / "mpl-data" / "fonts" / "ttf" if folder else None
    faces: list[Typeface] = []
    if fonts is not None and fonts.is_dir():
        for design, patterns in (
            ("DejaVu Sans", ("DejaVuSans.ttf", "DejaVuSans-*.ttf", "DejaVuSansMono*.ttf")),
            ("DejaVu Serif", ("DejaVuSerif.ttf", "DejaVuSerif-*.ttf")),
            ("STIX", ("STIXGeneral.ttf", "STIXGeneral[BI]*.ttf")),
        ):
            paths = dict.fromkeys(path for pattern in patterns for path in sorted(fonts.glob(pattern)))
            faces.extend(Typeface(design=design, path=path) for path in paths)
    signs = [c for c in range(0x21, 0x2FE0) if unicodedata.category(chr(c))[0] in "LNSP"]
    return FontSet(
        name="matplotlib",
        faces=tuple(faces),
        ranges=_as_ranges(signs),
        missing=() if faces else ("matplotlib",),
        version=f"unicode {unicodedata.unidata_version}",
    )


def _as_ranges(codepoints: Sequence[int]) -> tuple[tuple[int, int], ...]:
    ranges: list[tuple[int, int]] = []
    for c in codepoints:
        if ranges and ranges[-1][1] == c:
            ranges[-1] = (ranges[-1][0], c + 1)
        else:
            ranges.append((c, c + 1))
    return tuple(ranges)
