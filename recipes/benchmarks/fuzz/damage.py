"""Ways to damage a file."""

from __future__ import annotations

import random
import struct

TELLING = [struct.pack("<I", value) for value in (0, 1, 2, 0x7FFFFFFF, 0xFFFFFFFF, 0xCED7230A, 0x20000000, 0x60000010)]
TELLING += [struct.pack("<Q", value) for value in (1 << 31, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)]
TELLING += [b"\xff\xff", b"\0", b"\xff\xd8", b"\xff\xd9", b"\xff\xc0", b"\xff\xc2", b"IHDR", b"IDAT"]
TELLING += [b"9" * 30, b"-1", b"nan", b"1e999", b"null", b"[" * 40, b"../", b"/", b"\xf0\x9f\x98\x80"]
TELLING += [b"\n", b"\t", b",", b'"']
CODE = [
    b"cos\nsystem\n(S'true'\ntR",
    b"cbuiltins\neval\n(S'1'\ntR",
    b"c__builtin__\nopen\n(S'x'\nS'w'\ntR",
    b"\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R",
    b"(S'true'\nios\nsystem\n",
    b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(J\xff\xff\xff\x7ftS'b'\ntR",
    b"\x82\x01",
    b"\x81",
    b"\x92",
    b"Q",
    b"P1\n",
]
LENGTHS = [struct.pack("<I", n) for n in (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)]
LENGTHS += [struct.pack("<Q", n) for n in (0, 1 << 31, 1 << 40, (1 << 64) - 1)]
STEPS = [
    bytes([code])
    for code in b"(.0123456789]}{)}NIJKLMRSTUVXabcdeghijlopqrstuBC\x80\x85\x86\x87\x88\x89\x8a\x8c\x8e\x93\x94\x95\x96"
]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to four kinds of damage."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        place = rng.randrange(len(out) + 1) if rng.random() < 0.7 else rng.randrange(min(len(out), 64) + 1)
        kind = rng.randrange(6)
        if kind == 0 and place < len(out):
            out[place] ^= 1 << rng.randrange(8)
        elif kind == 1 and place < len(out):
            out[place] = rng.randrange(256)
        elif kind == 2:
            telling = rng.choice(TELLING)
            out[place : place + len(telling)] = telling
        elif kind == 3:
            del out[place : place + rng.randrange(1, 40)]
        elif kind == 4:
            out[place:place] = out[max(0, place - rng.randrange(1, 40)) : place]
        elif rng.random() < 0.3:
            del out[place:]
    return bytes(out)


def damage_pickle(data: bytes, rng: random.Random) -> bytes:
    """Damage with instructions of pickle spliced in, and lengths written over others."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        place = rng.randrange(len(out) + 1)
        kind = rng.randrange(7)
        if kind == 0 and place < len(out):
            out[place] ^= 1 << rng.randrange(8)
        elif kind == 1 and place < len(out):
            out[place] = rng.randrange(256)
        elif kind == 2:
            piece = rng.choice(LENGTHS)
            out[place : place + len(piece)] = piece
        elif kind == 3:
            out[place:place] = rng.choice(STEPS if rng.random() < 0.7 else CODE)
        elif kind == 4:
            del out[place : place + rng.choice((1, 2, 4, 9, 60))]
        elif kind == 5:
            piece = bytes(out[place : place + rng.choice((1, 3, 20, 200))])
            out[place:place] = piece * rng.choice((1, 1, 1, 50))
        else:
            del out[place:]
    return bytes(out)
