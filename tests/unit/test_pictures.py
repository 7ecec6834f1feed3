"""Picture files: the formats that are tried, kinds of pixels, which way is up, and how much is decoded."""

from __future__ import annotations

import io
import struct
import warnings
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lightning_pfc.data.errors import BrokenImageError
from lightning_pfc.data.pictures import decoding
from lightning_pfc.data.pictures.decoding import (
    FORMATS,
    decode,
    decode_whole,
    dimensions,
    has_transparency,
    is_plain_jpeg,
)
from lightning_pfc.data.pictures.headers import exif_orientation, jpeg_header
from lightning_pfc.data.pictures.modes import to_bytes

RNG = np.random.default_rng(0)
DEEP = RNG.integers(0, 1 << 16, (9, 7), dtype=np.uint16)
DEEP_COLOUR = RNG.integers(0, 1 << 16, (9, 7, 3), dtype=np.uint16)
DEEP_ALPHA = RNG.integers(0, 1 << 16, (9, 7, 4), dtype=np.uint16)
SMOOTH = np.asarray(Image.fromarray(RNG.integers(0, 256, (3, 4, 3), np.uint8)).resize((50, 40)))


def by_pillow(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def by_opencv(ending: str, pixels: np.ndarray[Any, Any]) -> bytes:
    cv2 = pytest.importorskip("cv2")
    return bytes(cv2.imencode(ending, pixels)[1].tobytes())


def as_opencv_reads(data: bytes) -> np.ndarray[Any, Any]:
    cv2 = pytest.importorskip("cv2")
    pixels: np.ndarray[Any, Any] = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return pixels[:, :, ::-1]


def small_tiff(pixels: np.ndarray[Any, Any], bits: int, photometric: int = 1, sample_format: int = 1) -> bytes:
    """An uncompressed grey TIFF of any depth, by hand."""
    height, width = pixels.shape
    if bits == 12:
        flat = pixels.reshape(-1, 2).astype(np.uint32)  # of an even width
        word = flat[:, 0] << 12 | flat[:, 1]
        body = np.stack([word >> 16, word >> 8 & 255, word & 255], 1).astype(np.uint8).tobytes()
    else:
        body = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    entries = [
        (256, 3, width), (257, 3, height), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8),
        (277, 3, 1), (278, 3, height), (279, 4, len(body)), (339, 3, sample_format),
    ]  # fmt: skip
    directory = struct.pack("<H", len(entries)) + b"".join(
        struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries
    )
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + directory + bytes(4)


def high_bytes() -> dict[str, tuple[bytes, np.ndarray[Any, Any]]]:
    """Deep pictures, and what they are in 8 bits."""
    twelve = DEEP[:, :6] >> 4
    return {
        "PNG, 16-bit grey": (by_opencv(".png", DEEP), DEEP >> 8),
        "PNG, 16-bit grey, by Pillow": (by_pillow(Image.fromarray(DEEP), "PNG"), DEEP >> 8),
        "PNG, 16-bit RGB": (by_opencv(".png", DEEP_COLOUR), DEEP_COLOUR[:, :, ::-1] >> 8),
        "PNG, 16-bit RGBA": (by_opencv(".png", DEEP_ALPHA), DEEP_ALPHA[:, :, 2::-1] >> 8),
        "TIFF, 16-bit grey": (by_opencv(".tif", DEEP), DEEP >> 8),
        "TIFF, 16-bit RGB": (by_opencv(".tif", DEEP_COLOUR), DEEP_COLOUR[:, :, ::-1] >> 8),
        "TIFF, 16-bit grey, by hand": (small_tiff(DEEP, 16), DEEP >> 8),
        "TIFF, 16-bit grey, white is 0": (small_tiff(DEEP, 16, photometric=0), 255 - (DEEP >> 8)),
        "TIFF, 12-bit grey": (small_tiff(twelve, 12), twelve >> 4),
        "PGM, 16-bit": (by_opencv(".pgm", DEEP), DEEP >> 8),
        "PPM, 16-bit": (by_opencv(".ppm", DEEP_COLOUR), DEEP_COLOUR[:, :, ::-1] >> 8),
    }


def test_deep_pictures_give_their_high_byte() -> None:
    for name, (data, wanted) in high_bytes().items():
        colour, grey = decode(data), decode(data, channels=1)
        assert colour.dtype == np.uint8, name
        if wanted.ndim == 2:
            np.testing.assert_array_equal(colour, np.repeat(wanted[:, :, None], 3, 2), err_msg=name)
            np.testing.assert_array_equal(grey[:, :, 0], wanted, err_msg=name)
        else:
            np.testing.assert_array_equal(colour, wanted, err_msg=name)
            by_luma = np.asarray(Image.fromarray(wanted.astype(np.uint8)).convert("L"))
            np.testing.assert_array_equal(grey[:, :, 0], by_luma, err_msg=name)
    for name in ("PNG, 16-bit grey", "PNG, 16-bit RGB", "PNG, 16-bit RGBA", "PGM, 16-bit", "PPM, 16-bit"):
        np.testing.assert_array_equal(decode(high_bytes()[name][0]), as_opencv_reads(high_bytes()[name][0]), name)


EIGHT = [
    *[("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")],
    *[("TIFF", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")],
    *[("BMP", mode) for mode in ("1", "L", "P", "RGB", "RGBA")],
    *[("PPM", mode) for mode in ("1", "L", "RGB")],
    *[("GIF", mode) for mode in ("1", "L", "P")],
    *[("WEBP", mode) for mode in ("RGB", "RGBA")],
    *[("JPEG", mode) for mode in ("L", "RGB", "CMYK")],
]


@pytest.mark.parametrize(("kind", "mode"), EIGHT)
def test_pictures_of_8_bits_are_as_opencv_reads_them(kind: str, mode: str) -> None:
    data = by_pillow(Image.fromarray(SMOOTH).convert(mode), kind)
    tolerance = 1 if mode in ("CMYK", "YCbCr") else 0  # two ways to round the colours
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.abs(decode(data).astype(int) - as_opencv_reads(data)).max() <= tolerance
    assert decode(data, channels=1).shape == (40, 50, 1)
    assert dimensions(data) == (40, 50)


def transparent_pictures() -> dict[str, tuple[bytes, np.ndarray[Any, Any]]]:
    """Encoded, with its colours and alpha, (H, W, 4)."""
    drawn = np.dstack([SMOOTH, RNG.integers(0, 256, SMOOTH.shape[:2], np.uint8)])
    drawn[:5, :, 3], drawn[5:9, :, 3] = 0, 255
    image, grey = Image.fromarray(drawn), Image.fromarray(drawn).convert("LA")
    keyed = Image.fromarray(np.where(drawn[..., 3:] < 128, np.uint8(7), SMOOTH | np.uint8(8)))
    palette = Image.fromarray(SMOOTH).quantize(16)
    alphas = bytes(range(0, 256, 16))
    indexed = np.dstack([np.asarray(palette.convert("RGB")), np.frombuffer(alphas, np.uint8)[np.asarray(palette)]])
    deep = by_opencv(".png", DEEP_ALPHA)
    return {
        "PNG RGBA": (by_pillow(image, "PNG"), drawn),
        "WEBP RGBA": (by_pillow(image, "WEBP", lossless=True, exact=True), drawn),
        "TIFF RGBA": (by_pillow(image, "TIFF"), drawn),
        "PNG LA": (by_pillow(grey, "PNG"), np.asarray(grey.convert("RGBA"))),
        "TIFF LA": (by_pillow(grey, "TIFF"), np.asarray(grey.convert("RGBA"))),
        "PNG RGB with a key": (
            by_pillow(keyed, "PNG", transparency=(7, 7, 7)),
            np.dstack([np.asarray(keyed), np.where((np.asarray(keyed) == 7).all(2), 0, 255).astype(np.uint8)]),
        ),
        "PNG P": (by_pillow(palette, "PNG", transparency=alphas), indexed),
        "PNG RGBA of 16 bits": (deep, (DEEP_ALPHA[..., [2, 1, 0, 3]] >> 8).astype(np.uint8)),
    }


@pytest.mark.parametrize(("background", "shade"), [("white", 255), ("black", 0)])
def test_transparent_pictures_are_laid_over_a_background(background: Any, shade: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, (data, drawn) in transparent_pictures().items():
            alpha = drawn[..., 3:] / 255.0
            wanted = np.rint(drawn[..., :3] * alpha + shade * (1 - alpha)).astype(np.uint8)
            np.testing.assert_array_equal(decode(data, background=background), wanted, name)
            grey = np.asarray(Image.fromarray(wanted).convert("L"))[:, :, None]
            np.testing.assert_array_equal(decode(data, channels=1, background=background), grey, name)
            np.testing.assert_array_equal(decode(data), drawn[..., :3], name)  # as OpenCV reads it
            assert has_transparency(data), name
            with Image.open(io.BytesIO(data)) as image:  # as somebody who has opened it hands it on
                image.load()
                np.testing.assert_array_equal(to_bytes(image, 3, background=background), wanted, name)
                np.testing.assert_array_equal(to_bytes(image, 3), drawn[..., :3], name)
        for kind, mode in EIGHT:
            data = by_pillow(Image.fromarray(SMOOTH).convert(mode), kind)
            np.testing.assert_array_equal(decode(data, background=background), decode(data))
            assert not has_transparency(data)
        for name, (data, _) in high_bytes().items():
            assert has_transparency(data) == ("RGBA" in name)
    with pytest.raises(BrokenImageError, match=r"a\.png: the image cannot be decoded"):
        has_transparency(by_pillow(Image.fromarray(SMOOTH).convert("RGBA"), "PNG")[:-40], where="a.png")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (by_pillow(Image.fromarray(DEEP.astype(np.int32)), "TIFF"), "32-bit or signed integers"),
        (by_pillow(Image.fromarray(DEEP.astype(np.float32)), "TIFF"), "floating-point numbers"),
        (by_pillow(Image.fromarray(DEEP.astype(np.float32)), "PPM"), "floating-point numbers"),
        (small_tiff(DEEP.astype(np.int16), 16, sample_format=2), "32-bit or signed integers"),
        (small_tiff((DEEP >> 8).astype(np.uint8), 8, sample_format=2), "32-bit or signed integers"),
        (by_pillow(Image.fromarray(SMOOTH).convert("LAB"), "TIFF"), "CIE LAB"),
        (by_opencv(".tif", DEEP_COLOUR.astype(np.float32)), "pixels of a kind that is not read"),
    ],
)
def test_pictures_without_one_way_to_8_bits_are_refused_by_name(data: bytes, reason: str) -> None:
    for channels in (1, 3):
        with pytest.raises(BrokenImageError, match=f"^here: .*{reason}"):
            decode(data, channels=channels, where="here")


def turned(kind: str, orientation: int, image: np.ndarray[Any, Any] = SMOOTH) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return by_pillow(Image.fromarray(image), kind, exif=exif)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_pictures_stand_the_way_that_opencv_turns_them(kind: str, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fast:
        monkeypatch.setattr(decoding, "_simplejpeg", lambda: None)
    for orientation in range(1, 9):
        data = turned(kind, orientation)
        found = decode_whole(data)
        assert found.orientation == orientation
        np.testing.assert_array_equal(found.pixels, as_opencv_reads(data))
        assert found.size == found.pixels.shape[:2] == dimensions(data)
        assert found.size == ((40, 50) if orientation < 5 else (50, 40))
        if kind == "JPEG":
            assert is_plain_jpeg(data, found.size) is (orientation == 1)
    for orientation in (0, 9, 4711):
        np.testing.assert_array_equal(decode(turned(kind, orientation)), decode(turned(kind, 1)))


def test_a_tag_behind_the_pixels_turns_them_too() -> None:
    """A PNG may have it there; the size that its header says is that of the upright picture all the same."""
    data = turned("PNG", 6)
    place = data.index(b"eXIf") - 4
    length = 12 + int.from_bytes(data[place : place + 4], "big")
    end = len(data) - 12
    moved = data[:place] + data[place + length : end] + data[place : place + length] + data[end:]
    assert moved.index(b"eXIf") > moved.index(b"IDAT")
    assert decode(moved).shape[:2] == dimensions(moved) == (50, 40)
    np.testing.assert_array_equal(decode(moved), as_opencv_reads(moved))


def test_a_damaged_tag_turns_nothing() -> None:
    block = turned("JPEG", 6)
    block = block[block.index(b"Exif") : block.index(b"Exif") + 60]
    assert exif_orientation(block) == exif_orientation(block[6:]) == 6
    for cut in range(len(block)):
        assert exif_orientation(block[:cut]) in (1, 6)
    rng = np.random.default_rng(1)
    for _ in range(2000):
        noisy = bytearray(block)
        for place in rng.integers(0, len(block), 3):
            noisy[place] = rng.integers(0, 256)
        assert 1 <= exif_orientation(bytes(noisy)) <= 8


def test_only_the_documented_formats_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """EPS is drawn by Ghostscript, and there are forty more formats in Pillow."""
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    others = {"EPS": postscript, "DOS EPS": b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 12, len(postscript)) + postscript}
    picture = Image.fromarray(SMOOTH)
    for kind in ("ICO", "TGA", "PCX", "SGI", "DDS", "PDF", "ICNS", "IM"):
        others[kind] = by_pillow(picture, kind)
    assert len(others) > 8
    tried: list[str] = []
    for kind in list(Image.OPEN):
        if kind not in FORMATS:
            monkeypatch.setitem(Image.OPEN, kind, (lambda *a, k=kind: tried.append(k), lambda prefix: True))
    monkeypatch.setattr(Image, "init", lambda: tried.append("all"))
    for kind, data in others.items():
        with pytest.raises(BrokenImageError, match=f"one of the formats that are read .{', '.join(FORMATS)}"):
            decode(data)
        with pytest.raises(BrokenImageError):
            dimensions(data)
        for wrap in (b"\xff\xd8\xff", b"II*\0", b"BM", b"GIF89a", b"RIFF\0\0\0\0WEBP", b"P6\n"):
            with pytest.raises(BrokenImageError):
                decode(wrap + data)
        assert not tried, kind


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("progressive", [True, False])
def test_large_jpegs_are_decoded_at_a_fraction(fast: bool, progressive: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fast:
        monkeypatch.setattr(decoding, "_simplejpeg", lambda: None)
    photo = Image.fromarray(SMOOTH).resize((1203, 802))
    data = by_pillow(photo, "JPEG", progressive=progressive)
    for bound, size in ((1 << 20, (802, 1203)), (900_000, (401, 602)), (100_000, (201, 301)), (20_000, (101, 151))):
        if progressive and bound * 8 < 802 * 1203:  # its coefficients are held whole
            with pytest.raises(BrokenImageError, match=f"1203 x 802 pixels, more than max_pixels={bound}"):
                decode(data, max_pixels=bound)
            continue
        found = decode_whole(data, max_pixels=bound)
        assert (found.pixels.shape[:2], found.size) == (size, (802, 1203))
        shrunk = photo.resize(size[::-1], Image.Resampling.BOX)
        assert np.abs(found.pixels.astype(int) - np.asarray(shrunk)).mean() < 3
    with pytest.raises(BrokenImageError, match="1203 x 802 pixels, more than max_pixels=1000"):
        decode(data, max_pixels=1000)
    assert decode(data, at_least=(200, 200)).shape == (201, 301, 3)
    assert decode(data, at_least=(402, 402)).shape == (802, 1203, 3)
    with pytest.raises(BrokenImageError, match="50 x 40 pixels, more than max_pixels=1999"):
        decode(by_pillow(Image.fromarray(SMOOTH), "PNG"), max_pixels=1999)


def test_a_photo_of_24_million_pixels_is_read() -> None:
    photo = np.zeros((4000, 6000, 3), np.uint8)
    photo[:, 3000:] = 255
    data = by_pillow(Image.fromarray(photo), "JPEG", quality=30)
    assert decode(data, at_least=(112, 112)).shape == (500, 750, 3)
    assert decode(data).shape == (2000, 3000, 3)


def test_a_header_makes_no_room_for_what_it_only_claims() -> None:
    webp = bytearray(by_pillow(Image.fromarray(SMOOTH).convert("RGBA"), "WEBP", lossless=True))
    webp[21:25] = (0x3FFE | 0x3FFE << 14).to_bytes(4, "little")
    jpeg = bytearray(by_pillow(Image.fromarray(SMOOTH), "JPEG", progressive=True))
    place = jpeg.index(b"\xff\xc2") + 5
    jpeg[place : place + 4] = b"\xff\xdc\xff\xdc"
    wide, wider = struct.pack("<HHII", 256, 3, 1, 7), struct.pack("<HHII", 256, 4, 1, 1 << 30)
    for data in (bytes(webp), bytes(jpeg), small_tiff(DEEP, 16).replace(wide, wider)):
        with pytest.raises(BrokenImageError, match="more than max_pixels=16777216"):
            decode(data)


def test_jpegs_of_other_kinds_are_refused_by_name() -> None:
    jpeg = by_pillow(Image.fromarray(SMOOTH), "JPEG")
    place = jpeg.index(b"\xff\xc0")
    twelve = jpeg[: place + 4] + b"\x0c" + jpeg[place + 5 :]
    with pytest.raises(BrokenImageError, match="the JPEG has 12 bits a sample"):
        decode(twelve)
    with pytest.raises(BrokenImageError, match="lossless or hierarchical"):
        decode(jpeg[: place + 1] + b"\xc3" + jpeg[place + 2 :])
    with pytest.raises(ValueError, match="ends before its first scan"):
        jpeg_header(jpeg[: jpeg.index(b"\xff\xda")])
    header = jpeg_header(by_pillow(Image.fromarray(SMOOTH), "JPEG", progressive=True))
    assert (header.height, header.width, header.components, header.bits, header.buffered) == (40, 50, 3, 8, True)
