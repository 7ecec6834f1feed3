"""What the first bytes of a picture say, without a decoder: its format, its size, and which way is up."""

from __future__ import annotations

import struct
from typing import NamedTuple

JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF")
"""The picture formats that are read, by Pillow's names; no other decoder is ever tried."""

_STARTS = (
    (JPEG_START, "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"BM", "BMP"),
    (b"GIF8", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)
# Baseline, extended and progressive, by Huffman or arithmetic coding; the other kinds no library here decodes.
_FRAMES = {0xC0: False, 0xC1: False, 0xC2: True, 0xC9: False, 0xCA: True}
_OTHER_FRAMES = frozenset((0xC3, 0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF))
_ALONE = frozenset((0x01, *range(0xD0, 0xD8)))  # markers without a segment
_EXIF = b"Exif\0\0"
_ORIENTATION = 0x0112


class JpegHeader(NamedTuple):
    """Of a JPEG up to its first scan.

    Attributes:
        height, width: as stored, before it is turned.
        components: 1 for grey, 3 for colours, 4 for CMYK.
        bits: of a sample.
        buffered: whether a decoder must hold all coefficients, whatever the size of the result.
        orientation: 1 (as stored) to 8, of the EXIF tag.
    """

    height: int
    width: int
    components: int
    bits: int
    buffered: bool
    orientation: int


def format_of(data: bytes) -> str | None:
    """One of ``FORMATS`` by the first bytes, or None."""
    for start, name in _STARTS:
        if data.startswith(start):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return "PPM" if data[:1] == b"P" and data[1:2] in (b"1", b"2", b"3", b"4", b"5", b"6", b"f") else None


def jpeg_header(data: bytes) -> JpegHeader:
    """Walks over the segments of a JPEG.

    Raises:
        ValueError: the file ends before its first scan, or the walk finds no marker; says what is wrong.
    """
    place, end, orientation = 2, len(data), 1
    frame: tuple[int, int, int, int, bool] | None = None
    while True:
        while place + 1 < end and data[place] == 0xFF and data[place + 1] == 0xFF:
            place += 1
        if place + 4 > end:
            raise ValueError("the JPEG ends before its first scan")
        if data[place] != 0xFF:
            raise ValueError(f"the JPEG has no marker at byte {place}")
        marker = data[place + 1]
        if marker in _ALONE:
            place += 2
            continue
        length = data[place + 2] << 8 | data[place + 3]
        body = place + 4
        if length < 2 or place + 2 + length > end:
            raise ValueError(f"the JPEG's segment at byte {place} reaches beyond its end")
        if marker in _FRAMES and length >= 8:
            bits, height, width, components = struct.unpack_from(">BHHB", data, body)
            frame = (height, width, components, bits, _FRAMES[marker])
        elif marker in _OTHER_FRAMES:
            raise ValueError(f"the JPEG is of a kind that is not read (marker {marker:#x}: lossless or hierarchical)")
        elif marker == 0xE1 and orientation == 1 and data[body : body + 6] == _EXIF:
            orientation = exif_orientation(data[body : place + 2 + length])
        elif marker == 0xDA:
            break
        elif marker == 0xD9:
            raise ValueError("the JPEG ends before its first scan")
        place += 2 + length
    if frame is None:
        raise ValueError("the JPEG has no frame before its first scan")
    height, width, components, bits, progressive = frame
    if not height or not width:
        raise ValueError(f"the JPEG has {width} x {height} pixels")
    return JpegHeader(height, width, components, bits, progressive or data[body] < components, orientation)


def exif_orientation(block: bytes) -> int:
    """The orientation of an EXIF block, 1 to 8; 1 where it has none that can be read.

    Args:
        block: with or without the ``Exif`` that it begins with in a JPEG.
    """
    block = block.removeprefix(_EXIF)
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None or len(block) < 8:
        return 1
    (directory,) = struct.unpack_from(order + "I", block, 4)
    if directory + 2 > len(block):
        return 1
    (count,) = struct.unpack_from(order + "H", block, directory)
    for entry in range(directory + 2, min(directory + 2 + 12 * count, len(block) - 11), 12):
        tag, kind, number = struct.unpack_from(order + "HHI", block, entry)
        if tag == _ORIENTATION:
            layout = {3: "H", 4: "I"}.get(kind)
            if layout is None or number != 1:
                return 1
            (value,) = struct.unpack_from(order + layout, block, entry + 8)
            return value if 1 <= value <= 8 else 1
    return 1


def png_orientation(data: bytes) -> int:
    """Of a PNG, 1 to 8: its tag may lie behind the pixels, where Pillow finds it only when it decodes them."""
    place = 8
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        if data[place + 4 : place + 8] == b"eXIf":
            return exif_orientation(data[place + 8 : place + 8 + length])
        place += 12 + length
    return 1


def webp_size(data: bytes) -> tuple[int, int] | None:
    """``(height, width)`` of a WebP's canvas by its first chunk, or None: Pillow makes room for it on opening."""
    kind = data[12:16]
    if kind == b"VP8X" and len(data) >= 30:
        width, height = (int.from_bytes(data[place : place + 3], "little") + 1 for place in (24, 27))
        return height, width
    if kind == b"VP8L" and len(data) >= 25:
        bits = int.from_bytes(data[21:25], "little")
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if kind == b"VP8 " and len(data) >= 30:
        width, height = struct.unpack_from("<HH", data, 26)
        return height & 0x3FFF, width & 0x3FFF
    return None
