"""The decoder of :mod:`lightning_pfc.data.pictures.decoding`, under the name that it had before."""

from lightning_pfc.data.pictures.decoding import MAX_PIXELS, _simplejpeg, decode, dimensions

__all__ = ["MAX_PIXELS", "_simplejpeg", "decode", "dimensions"]
