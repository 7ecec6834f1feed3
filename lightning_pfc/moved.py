"""Where modules went whose old names others may still import."""

from __future__ import annotations

from lightning_pfc.renamed import MovedModules

_H, _S = "lightning_pfc.heads", "lightning_pfc.heads.softmax"
_OLD_LOSSES, _AUXILIARY = "lightning_pfc.losses.additions", "lightning_pfc.losses.auxiliary"

_MODULES = {
    f"{_H}.chunks": f"{_S}.class_chunks",
    f"{_H}.cross_entropy": f"{_S}.interface",
    f"{_H}.gathered": f"{_H}.batch",
    f"{_H}.init": f"{_H}.center_init",
    f"{_H}.learned_curve": f"{_S}.learned_logits",
    f"{_H}.plan": f"{_S}.spec",
    f"{_H}.prototypes": f"{_S}.blended_centers",
    f"{_H}.ranking": f"{_S}.target_rank",
    f"{_H}.row_gradients": f"{_S}.center_gradients",
    f"{_H}.row_memory": f"{_H}.class_memory",
    f"{_H}.sharded_rows": f"{_H}.sharded_centers",
    f"{_H}.slope_filter": f"{_S}.gradient_filter",
    f"{_H}.sparse_slopes": f"{_S}.sparse_entries",
    f"{_H}.table": f"{_H}.host_rows",
    f"{_H}.validation": f"{_H}.batch_checks",
    _OLD_LOSSES: _AUXILIARY,
    **{f"{_OLD_LOSSES}.{name}": f"{_AUXILIARY}.{name}" for name in ("base", "center", "supcon", "triplet")},
}
_NAMES = {
    f"{_S}.class_chunks:Chunks": "ClassChunks",
    f"{_S}.interface:sharded_softmax_sums": "sharded_softmax",
    f"{_H}.batch:Gathered": "GlobalBatch",
    f"{_H}.batch:Gatherer": "BatchGatherer",
    f"{_S}.learned_logits:LearnedCurve": "LearnedLogits",
    f"{_S}.spec:Plan": "SoftmaxSpec",
    f"{_S}.spec:Sums": "SoftmaxSums",
    f"{_S}.blended_centers:Prototypes": "BlendedCenters",
    f"{_H}.sharded_centers:ShardedRows": "ShardedCenters",
    f"{_S}.gradient_filter:SlopeFilter": "GradientFilter",
    f"{_S}.sparse_entries:Slopes": "SparseEntries",
    f"{_S}.sparse_entries:places": "find_entries",
    f"{_H}.host_rows:staged": "stage_pinned",
    f"{_H}.host_rows:is_elsewhere": "is_offloaded",
    f"{_AUXILIARY}:Addition": "AuxiliaryLoss",
    f"{_AUXILIARY}:addition_from_config": "auxiliary_loss_from_config",
    f"{_AUXILIARY}.base:Addition": "AuxiliaryLoss",
}

MOVED = MovedModules(_MODULES, _NAMES)
