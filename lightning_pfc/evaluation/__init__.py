"""Protocols that judge embeddings: verification, templates, all pairs, identification, groups."""

from __future__ import annotations

from lightning_pfc.evaluation.all_pairs import AllPairsPoint, AllPairsResult, all_pairs_tar
from lightning_pfc.evaluation.bins import BinImages, write_bin
from lightning_pfc.evaluation.embedders import (
    Embedder,
    TorchEmbedder,
    checkpoint_embedder,
    embed_images,
    timm_embedder,
)
from lightning_pfc.evaluation.identification import (
    ProbeResults,
    identification_rate,
    rank_among_distractors,
    search,
    tpir_at_fpir,
)
from lightning_pfc.evaluation.onnx_embedder import OnnxEmbedder
from lightning_pfc.evaluation.pairs import IndexedPairs, PairedImages, read_pairs
from lightning_pfc.evaluation.peers import Peers
from lightning_pfc.evaluation.protocol_config import PROTOCOLS
from lightning_pfc.evaluation.protocols import Evaluator
from lightning_pfc.evaluation.report import Measurement, ProtocolResult
from lightning_pfc.evaluation.settings import EvaluationSettings
from lightning_pfc.evaluation.templates import TemplateMode, template_features, template_scores, tpr_at_nearest_fpr
from lightning_pfc.names.renamed import renamed_names

__all__ = [
    "PROTOCOLS",
    "AllPairsPoint",
    "AllPairsResult",
    "BinImages",
    "Embedder",
    "EvaluationSettings",
    "Evaluator",
    "IndexedPairs",
    "Measurement",
    "OnnxEmbedder",
    "PairedImages",
    "Peers",
    "ProbeResults",
    "ProtocolResult",
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

_OF_VALIDATION = ("ClosedSetEvaluation", "Evaluation", "PairScores", "VerificationEvaluation", "make_evaluations")
__getattr__ = renamed_names(__name__, {name: f"lightning_pfc.validation:{name}" for name in _OF_VALIDATION})
