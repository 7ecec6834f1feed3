"""Where modules went whose old names others may still import."""

from __future__ import annotations

from lightning_pfc.renamed import MovedModules

_H, _S = "lightning_pfc.heads", "lightning_pfc.heads.softmax"
_SAMPLING, _RANDOM, _BUFFERS = f"{_H}.sampling", "lightning_pfc.keyed_random", "lightning_pfc.buffers"
_CHECKPOINT = "lightning_pfc.checkpoint"
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
    f"{_H}.table": f"{_BUFFERS}.host_rows",
    f"{_H}.memory": f"{_BUFFERS}.scratch",
    f"{_H}.permutation": f"{_RANDOM}.permutation",
    f"{_H}.samplers": _SAMPLING,
    f"{_H}.samplers.background": f"{_SAMPLING}.background_index",
    f"{_H}.samplers.base": f"{_SAMPLING}.base",
    f"{_H}.samplers.cells": f"{_SAMPLING}.ivf_index",
    f"{_H}.samplers.dissection": f"{_SAMPLING}.dissection",
    f"{_H}.samplers.frequency": f"{_SAMPLING}.frequency",
    f"{_H}.samplers.recent": f"{_SAMPLING}.recent",
    f"{_H}.samplers.retrieval": f"{_SAMPLING}.nearest",
    f"{_H}.samplers.schedule": f"{_SAMPLING}.rate_schedule",
    f"{_H}.samplers.uniform": f"{_SAMPLING}.uniform",
    f"{_H}.validation": f"{_H}.batch_checks",
    "lightning_pfc.named": "lightning_pfc.registry",
    "lightning_pfc.products": "lightning_pfc.cpu_matmul",
    f"{_CHECKPOINT}.folder": f"{_CHECKPOINT}.dcp_storage",
    f"{_CHECKPOINT}.store": f"{_CHECKPOINT}.save_load",
    f"{_CHECKPOINT}.surgery": f"{_CHECKPOINT}.edit_classes",
    f"{_CHECKPOINT}.tree": f"{_CHECKPOINT}.split_tree",
    "lightning_pfc.losses.keyed": f"{_RANDOM}.uniform",
    "lightning_pfc.optim.memory": f"{_BUFFERS}.lazy_zeros",
    "lightning_pfc.optim.noise": f"{_RANDOM}.rounding_noise",
    "lightning_pfc.storage.huge_pages": f"{_BUFFERS}.huge_pages",
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
    f"{_BUFFERS}.host_rows:staged": "stage_pinned",
    f"{_BUFFERS}.host_rows:is_elsewhere": "is_offloaded",
    f"{_SAMPLING}.base:Step": "SamplingContext",
    f"{_SAMPLING}.base:sample_rest": "fill_uniformly",
    "lightning_pfc.registry:Named": "Configurable",
    "lightning_pfc.registry:subclasses_by_word": "registered_subclasses",
    "lightning_pfc.cpu_matmul:fast_float32_products": "fast_fp32_matmul",
    f"{_CHECKPOINT}.split_tree:Rows": "ClassRows",
    f"{_CHECKPOINT}.dcp_storage:RowsSavePlanner": f"{_CHECKPOINT}.dcp_planners:RowsSavePlanner",
    f"{_CHECKPOINT}.dcp_storage:RowsLoadPlanner": f"{_CHECKPOINT}.dcp_planners:RowsLoadPlanner",
    f"{_CHECKPOINT}.edit_classes:Source": f"{_CHECKPOINT}.reader:CheckpointReader",
    f"{_CHECKPOINT}.edit_classes:read_checkpoint": f"{_CHECKPOINT}.reader:read_checkpoint",
    f"{_CHECKPOINT}.edit_classes:merge_to_file": f"{_CHECKPOINT}.merging:merge_to_file",
    f"{_CHECKPOINT}.edit_classes:merge_to_safetensors": f"{_CHECKPOINT}.merging:merge_to_safetensors",
    f"{_CHECKPOINT}.edit_classes:Kept": "KeepRows",
    f"{_CHECKPOINT}.edit_classes:Joined": "MergeRows",
    f"{_CHECKPOINT}.edit_classes:Added": "NewRows",
    f"{_AUXILIARY}:Addition": "AuxiliaryLoss",
    f"{_AUXILIARY}:addition_from_config": "auxiliary_loss_from_config",
    f"{_AUXILIARY}.base:Addition": "AuxiliaryLoss",
}

MOVED = MovedModules(_MODULES, _NAMES)
