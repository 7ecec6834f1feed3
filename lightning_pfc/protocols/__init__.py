"""Protocols that judge embeddings: verification, templates, all pairs, identification, groups."""

from __future__ import annotations

from lightning_pfc.protocols.all_pairs import AllPairsPoint, AllPairsResult, all_pairs_tar
from lightning_pfc.protocols.bins import BinImages, write_bin
from lightning_pfc.protocols.embedders import (
    Embedder,
    TorchEmbedder,
    checkpoint_embedder,
    embed_images,
    timm_embedder,
)
from lightning_pfc.protocols.identification import (
    ProbeResults,
    identification_rate,
    rank_among_distractors,
    search,
    tpir_at_fpir,
)
from lightning_pfc.protocols.onnx_embedder import OnnxEmbedder
from lightning_pfc.protocols.pairs import IndexedPairs, PairedImages, read_pairs
from lightning_pfc.protocols.peers import Peers
from lightning_pfc.protocols.report import Measurement, ProtocolResult
from lightning_pfc.protocols.suite import PROTOCOLS, Settings, Suite
from lightning_pfc.protocols.templates import TemplateMode, template_features, template_scores, tpr_at_nearest_fpr

__all__ = [
    "PROTOCOLS",
    "AllPairsPoint",
    "AllPairsResult",
    "BinImages",
    "Embedder",
    "IndexedPairs",
    "Measurement",
    "OnnxEmbedder",
    "PairedImages",
    "Peers",
    "ProbeResults",
    "ProtocolResult",
    "Settings",
    "Suite",
    "TemplateMode",
    "TorchEmbedder",
    "all_pairs_tar",
    "checkpoint_embedder",
    "embed_images",
    "identification_rate",
    "rank_among_distractors",
    "read_pairs",
    "search",
    "template_features",
    "template_scores",
    "timm_embedder",
    "tpir_at_fpir",
    "tpr_at_nearest_fpr",
    "write_bin",
]
