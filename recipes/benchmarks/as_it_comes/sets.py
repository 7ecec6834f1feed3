"""Small sets of many kinds, made here, as folders: ``SET/train/IDENTITY/*.png`` and ``SET/test/IDENTITY/*.png``.

    python sets.py sets/ --faces lfw.tar     # all that can be made, and faces of a tar of IDENTITY/*.jpg
    python sets.py sets/ --fashion usr/share/datasets/fashion-mnist --places skimage/data    # of a package each

The identities of ``test`` are never among those of ``train``.
"""

from __future__ import annotations

import argparse
import gzip
import io
import tarfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from string import ascii_letters
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Picture: TypeAlias = Image.Image
Random = np.random.Generator


def characters(count: int, each: int, seed: int) -> Iterator[list[Picture]]:
    """A character is an identity; a picture is it in one of five designs, placed by hand."""
    rng, designs = np.random.default_rng(seed), cjk_fonts()
    codes = rng.permutation(np.arange(0x4E00, 0x9000))
    made = 0
    for code in codes.tolist():
        drawn = [letter(chr(code), font) for font in designs]
        if any(picture.getbbox() is None for picture in drawn):
            continue
        order = rng.permutation(np.arange(each) % len(drawn))
        yield [placed(drawn[k], rng) for k in order]
        made += 1
        if made == count:
            return


def typefaces(count: int, each: int, seed: int) -> Iterator[list[Picture]]:
    """A typeface, with a slant and a weight, is an identity; a picture is a letter of it."""
    rng = np.random.default_rng(seed)
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz23456789"
    for style in rng.permutation(len(latin_fonts()) * 9)[:count].tolist():
        path, slant, weight = latin_fonts()[style // 9], (-0.35, 0.0, 0.35)[style % 3], (-1, 0, 1)[style // 3 % 3]
        font = ImageFont.truetype(str(path), 26)
        chosen = rng.choice(list(letters), each, replace=False)
        yield [placed(slanted(letter(str(c), font), slant, weight), rng, small=True) for c in chosen]


def letters(count: int, each: int, seed: int) -> Iterator[list[Picture]]:
    """A letter is an identity; a picture is it in one of many typefaces, slants and weights."""
    rng = np.random.default_rng(seed)
    unlike = "ABCDEFGHIJKLMNOPQRSTUVWXYZ23456789abdefghmnqrt"  # of upper and lower case alike, one
    for text in rng.permutation(list(unlike))[:count].tolist():
        styles = rng.permutation(len(latin_fonts()) * 9)[:each].tolist()
        drawn = [(letter(text, ImageFont.truetype(str(latin_fonts()[s // 9]), 26)), s) for s in styles]
        yield [placed(slanted(p, (-0.35, 0.0, 0.35)[s % 3], (-1, 0, 1)[s // 3 % 3]), rng, small=True) for p, s in drawn]


def drawings(count: int, each: int, seed: int) -> Iterator[list[Picture]]:
    """Strokes of a hand: an identity is a few curves, and its mirror image is another identity."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        if number % 2 == 0:
            strokes = [rng.uniform(5, 43, (4, 2)) for _ in range(rng.integers(3, 6))]
        else:
            strokes = [s * [-1, 1] + [48, 0] for s in strokes]
        yield [doodle(strokes, rng) for _ in range(each)]


def spectrograms(count: int, each: int, seed: int) -> Iterator[list[Picture]]:
    """A voice is an identity, by its formants and pitch; a picture is the spectrogram of an utterance of its own."""
    rng = np.random.default_rng(seed)
    bins = np.arange(48)[:, None]
    for _ in range(count):
        formants = np.sort(rng.uniform(4, 46, 4))
        widths, gains, pitch = rng.uniform(1, 3, 4), rng.uniform(0.4, 1, 4), rng.uniform(2.5, 6)
        pictures = []
        for _ in range(each):
            time = np.linspace(0, 1, 64)[None]
            sweep = 1 + 0.06 * np.sin(2 * np.pi * (rng.uniform(1, 3) * time + rng.uniform()))
            vowel = rng.uniform(0.3, 1, (4, 1)) + 0.4 * np.sin(2 * np.pi * (2 * time + rng.uniform(size=(4, 1))))
            tone = 0.5 + 0.5 * np.cos(2 * np.pi * bins / (pitch * sweep))
            shape = sum(
                g * v * np.exp(-(((bins - f * sweep) / w) ** 2) / 2)
                for f, w, g, v in zip(formants, widths, gains, vowel, strict=True)
            )
            loud = 1 / (1 + np.exp(-20 * (np.abs(time - rng.uniform(0.4, 0.6)) * -1 + rng.uniform(0.3, 0.45))))
            power = (shape * (0.4 + 0.6 * tone) * loud).clip(0) + rng.exponential(0.05, (48, 64))
            pictures.append(grey(np.log1p(20 * power) / 3.2 * 255))
        yield [picture.resize((48, 32), Image.Resampling.BOX) for picture in pictures]


def digits(count: int, each: int, seed: int) -> Iterator[list[Picture]]:
    """Scikit-learn's handwritten digits: ten identities with many pictures."""
    from sklearn.datasets import load_digits

    found = load_digits()
    for digit in np.random.default_rng(seed).permutation(10)[:count].tolist():
        for_one = found.images[found.target == digit][:each]
        yield [grey(image * 16).resize((32, 32), Image.Resampling.BILINEAR) for image in for_one]


def faces(tar: Path) -> Iterator[list[Picture]]:
    """People with at least three pictures."""
    people: dict[str, list[Picture]] = {}
    with tarfile.open(tar) as archive:
        for member in archive:
            if member.isfile() and member.name.endswith(".jpg"):
                data = archive.extractfile(member)
                assert data is not None
                picture = Image.open(io.BytesIO(data.read())).convert("RGB")
                people.setdefault(member.name.split("/")[-2], []).append(picture.resize((32, 32), Image.Resampling.BOX))
    names = sorted(name for name, pictures in people.items() if len(pictures) >= 3)
    yield from (people[name] for name in np.random.default_rng(0).permutation(names).tolist())


def fashion(idx: Path, count: int, each: int, seed: int) -> Iterator[list[Picture]]:
    """Zalando's clothes, of Debian's package dataset-fashion-mnist: ten identities with many pictures."""
    raw = [gzip.decompress((idx / f"train-{name}-ubyte.gz").read_bytes()) for name in ("images-idx3", "labels-idx1")]
    images = np.frombuffer(raw[0], np.uint8, offset=16).reshape(-1, 28, 28)
    labels = np.frombuffer(raw[1], np.uint8, offset=8)
    for kind in np.random.default_rng(seed).permutation(10)[:count].tolist():
        of_kind = images[labels == kind][:each]
        yield [Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR) for image in of_kind]


def places(photographs: Path, count: int, each: int, seed: int) -> Iterator[list[Picture]]:
    """A place in a photograph is an identity; a picture is what a camera sees of it, from elsewhere and in other light.

    The photographs are those of scikit-image's and scikit-learn's wheels; of the last two come the last identities.
    """
    import sklearn

    rng = np.random.default_rng(seed)
    more = Path(sklearn.__file__).parent / "datasets" / "images"
    names = ("astronaut.png", "chelsea.png", "rocket.jpg", "motorcycle_left.png", "hubble_deep_field.jpg", "ihc.png",
             "retina.jpg", "flower.jpg", "coffee.png", "china.jpg")  # fmt: skip
    found: list[tuple[Picture, int, int]] = []
    for name in names:
        photograph = Image.open(photographs / name if (photographs / name).exists() else more / name).convert("RGB")
        grey_values = np.asarray(photograph.convert("L"), np.float64)
        spots = [(x, y) for x in range(40, photograph.width - 40, 40) for y in range(40, photograph.height - 40, 40)]
        seen = [(x, y) for x, y in spots if grey_values[y - 16 : y + 16, x - 16 : x + 16].std() > 12]
        chosen = rng.permutation(len(seen))[: count // 8].tolist()
        found += [(photograph, *seen[k]) for k in chosen]
    for photograph, x, y in found[-count:]:
        yield [seen_again(photograph, x, y, rng) for _ in range(each)]


def seen_again(photograph: Picture, x: int, y: int, rng: Random) -> Picture:
    """32 x 32 pixels of about 40 around a place."""
    angle, size = rng.normal(0, 0.2), 1.25 * np.exp(rng.normal(0, 0.12))
    a, b = size * np.cos(angle), size * np.sin(angle)
    column, row = x + rng.normal(0, 2), y + rng.normal(0, 2)
    view = (a, -b, column - 16 * (a - b), b, a, row - 16 * (a + b))
    picture = photograph.transform((32, 32), Image.Transform.AFFINE, view, Image.Resampling.BILINEAR)
    blurred = np.asarray(picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 0.8)))), np.float64)
    light = 255 * (blurred / 255) ** np.exp(rng.normal(0, 0.3)) * rng.uniform(0.7, 1)
    return grey(light + rng.normal(0, rng.uniform(1, 8), light.shape))


SETS = {
    # name: (maker, identities, pictures of each, identities to test)
    "characters": (characters, 800, 10, 300),
    "typefaces": (typefaces, 198, 30, 80),
    "few_large": (characters, 40, 200, 25),
    "many_by_two": (characters, 4000, 2, 500),
    "drawings": (drawings, 600, 12, 200),
    "spectrograms": (spectrograms, 400, 16, 150),
    "digits": (digits, 10, 170, 4),
    "noisy": (characters, 800, 10, 300),
    "faces": (faces, 747, 0, 200),
    "fashion": (fashion, 10, 170, 4),
    "places": (places, 560, 12, 140),
    "letters": (letters, 46, 170, 38),
}


def make(name: str, folder: Path, given: dict[str, Path | None]) -> Path | None:
    """A set, unless it is there; None where it cannot be made, since what it is made from was not given."""
    place = folder / name
    if (place / "done").exists():
        return place
    if name in given and given[name] is None:
        return None
    maker, count, each, held = SETS[name]
    start = [given[name]] if name in given else []
    identities = list(maker(*start) if name == "faces" else maker(*start, count, each, 7))  # type: ignore[operator]
    training = identities[: len(identities) - held]
    if name == "noisy":
        swap_labels(training, 0.2)
    for part, members in (("train", training), ("test", identities[len(identities) - held :])):
        for number, pictures in enumerate(members):
            (place / part / f"i{number:05}").mkdir(parents=True, exist_ok=True)
            for k, picture in enumerate(pictures):
                picture.save(place / part / f"i{number:05}" / f"{k:03}.png")
    (place / "done").touch()
    return place


def swap_labels(identities: list[list[Picture]], share: float) -> None:
    """Wrong labels: some pictures change places."""
    rng = np.random.default_rng(3)
    spots = [(i, k) for i, pictures in enumerate(identities) for k in range(len(pictures))]
    chosen = [spots[n] for n in rng.permutation(len(spots))[: int(share * len(spots))]]
    pictures = [identities[i][k] for i, k in chosen]
    for (i, k), picture in zip(chosen, pictures[1:] + pictures[:1], strict=True):
        identities[i][k] = picture


def letter(text: str, font: ImageFont.FreeTypeFont) -> Picture:
    """White on black, in the middle of 32 x 32."""
    picture = Image.new("L", (32, 32), 0)
    ImageDraw.Draw(picture).text((16, 16), text, 255, font, anchor="mm")
    return picture


def placed(picture: Picture, rng: Random, small: bool = False) -> Picture:
    """Turned, moved, stretched, blurred and grainy, as if found somewhere."""
    much = 0.5 if small else 1.0
    angle, shear = rng.normal(0, 0.08 * much), rng.normal(0, 0.12 * much)
    a, b = np.cos(angle) * rng.normal(1, 0.07), shear - np.sin(angle)
    d, e = np.sin(angle), np.cos(angle) * rng.normal(1, 0.07)
    c, f = 16 - 16 * (a + b) + rng.normal(0, 1), 16 - 16 * (d + e) + rng.normal(0, 1)
    moved = picture.transform(picture.size, Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR)
    blurred = np.asarray(moved.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 0.9)))), dtype=np.float64)
    light = blurred * rng.uniform(0.6, 1) + rng.uniform(0, 40)
    return grey(light + rng.normal(0, rng.uniform(2, 18), light.shape))


def slanted(picture: Picture, slant: float, weight: int) -> Picture:
    """Another face of the same letters."""
    if weight:
        picture = picture.filter(ImageFilter.MaxFilter(3) if weight > 0 else ImageFilter.GaussianBlur(1.0))
    shear = (1, slant, -16 * slant, 0, 1, 0)
    return picture.transform(picture.size, Image.Transform.AFFINE, shear, Image.Resampling.BILINEAR)


def doodle(strokes: list[NDArray[np.float64]], rng: Random) -> Picture:
    """The strokes as another hand would draw them."""
    picture = Image.new("L", (96, 96), 0)
    pen, width = ImageDraw.Draw(picture), int(rng.integers(2, 6))
    turn, size, shift = rng.normal(0, 0.12), rng.normal(1, 0.1), rng.normal(0, 2.5, 2)
    rotation = size * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    t = np.linspace(0, 1, 16)[:, None]
    for stroke in strokes:
        p = (stroke + rng.normal(0, 2.2, (4, 2)) - 24) @ rotation.T + 24 + shift
        curve = (1 - t) ** 3 * p[0] + 3 * t * (1 - t) ** 2 * p[1] + 3 * t**2 * (1 - t) * p[2] + t**3 * p[3]
        pen.line([tuple(point) for point in (curve * 2).tolist()], 255, width)
    return picture.resize((32, 32), Image.Resampling.BOX)


def grey(pixels: NDArray[np.float64]) -> Picture:
    """Any numbers around 0 to 255."""
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def cjk_fonts() -> list[ImageFont.FreeTypeFont]:
    """Five designs of the wheels of the extra ``glyphs``."""
    import importlib.util

    found: list[Path] = []
    for package in ("pylopdf_fonts_zh_cn", "pylopdf_fonts_jp", "matplotlib_fontja"):
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin:
            found += sorted(p for p in Path(spec.origin).parent.rglob("*") if p.suffix.lower() in (".otf", ".ttf"))
    return [ImageFont.truetype(str(path), 26) for path in found]


@cache
def latin_fonts() -> list[Path]:
    """Faces of matplotlib with every Latin letter, by its name: symbols have the codes of letters, too."""
    import matplotlib as mpl
    from matplotlib.ft2font import FT2Font

    def is_latin(path: Path) -> bool:
        font = FT2Font(str(path))
        glyphs = font.get_charmap()
        return all(ord(c) in glyphs and font.get_glyph_name(glyphs[ord(c)]) == c for c in ascii_letters)

    return sorted(filter(is_latin, (Path(mpl.get_data_path()) / "fonts" / "ttf").glob("*.ttf")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("folder", type=Path)
    parser.add_argument("--faces", type=Path, help="a tar of PERSON/PICTURE.jpg")
    parser.add_argument("--fashion", type=Path, help="the folder of the package's idx files")
    parser.add_argument("--places", type=Path, help="skimage/data")
    arguments = parser.parse_args()
    given = {name: getattr(arguments, name) for name in ("faces", "fashion", "places")}
    for name in SETS:
        print(name, make(name, arguments.folder, given) or f"needs --{name}", flush=True)


if __name__ == "__main__":
    main()
