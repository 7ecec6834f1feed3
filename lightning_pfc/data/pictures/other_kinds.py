"""What bytes are that are no picture of a kind that is read: the message says it, and the way out."""

from __future__ import annotations

_CONVERT = "convert it to JPEG or PNG"
_KINDS = (
    (4, b"ftypavif", f"AVIF; {_CONVERT}"),
    (4, b"ftyphei", f"HEIC; {_CONVERT}"),
    (4, b"ftypmif1", f"HEIF; {_CONVERT}"),
    (4, b"ftyp", "a film"),
    (0, b"\0\0\0\x0cjP  ", f"JPEG 2000; {_CONVERT}"),
    (0, b"\xff\x4f\xff\x51", f"JPEG 2000; {_CONVERT}"),
    (0, b"\xff\x0a", f"JPEG XL; {_CONVERT}"),
    (0, b"\0\0\0\x0cJXL ", f"JPEG XL; {_CONVERT}"),
    (0, b"%!PS", f"PostScript; {_CONVERT}"),
    (0, b"%PDF", f"PDF; {_CONVERT}"),
    (0, b"\0\0\x01\0", f"an icon; {_CONVERT}"),
    (0, b"<svg", f"SVG; {_CONVERT}"),
    (0, b"version https://git-lfs", "a pointer of Git LFS; fetch the file itself by `git lfs pull`"),
    (0, b"<!doctype html", "a web page, as a download that failed leaves it"),
    (0, b"<html", "a web page, as a download that failed leaves it"),
    (0, b"PK\x03\x04", "a zip archive; unpack it"),
    (0, b"\x1f\x8b", "gzip; unpack it"),
)


def what_it_is(data: bytes) -> str:
    """To go behind "no picture ...": ``": it is AVIF; convert it to JPEG or PNG"``, or empty where nothing is known."""
    if not data:
        return ": the file is empty"
    text = data[:3] == b"\xef\xbb\xbf"  # with a mark of UTF-8 before it
    head = data[3:64] if text else data[:64]
    for place, start, kind in _KINDS:
        if head[place:].lower().startswith(start.lower()):
            return f": it is {kind}"
    return ""
