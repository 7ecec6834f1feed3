"""Heads and backbones of other projects: read from their files, and written as they write them."""

from lightning_pfc.interchange.exporters import EXPORTERS
from lightning_pfc.interchange.imported import Imported
from lightning_pfc.interchange.importers import IMPORTERS
from lightning_pfc.interchange.writing import write_imported

__all__ = ["EXPORTERS", "IMPORTERS", "Imported", "write_imported"]
