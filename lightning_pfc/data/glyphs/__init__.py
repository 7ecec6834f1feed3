"""Characters drawn from fonts: an embedded open set of thousands of classes."""

from lightning_pfc.data.glyphs.source import Glyphs

__all__ = ["Glyphs"]
