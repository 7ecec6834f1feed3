"""``init_from``: weights that exist in a module that begins anew. Counters, optimizers and schedules are fresh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor, nn

from lightning_pfc.checkpoint.errors import CheckpointError
from lightning_pfc.checkpoint.identities import Identities
from lightning_pfc.checkpoint.save_load import raise_on_all
from lightning_pfc.distributed import Comm
from lightning_pfc.heads.partial_fc import iter_heads
from lightning_pfc.interchange.plain_weights import all_finite, why_no_weights
from lightning_pfc.transfer.fitting import fitted
from lightning_pfc.transfer.head_rows import take_head
from lightning_pfc.transfer.naming import BACKBONE, NECK, below, find_prefix, outer, plain, plain_names
from lightning_pfc.transfer.sources import Weights, open_weights

PARTS = ("backbone", "neck", "head")
_MOST_MISSING = 0.1
_COUNTER = "num_batches_tracked"
_CLASSIFIERS = ("fc", "head", "classifier", "last_linear", "head_dist", "output_layer", "logits")


@dataclass
class Report:
    """What has become of the tensors of a file and of a module.

    Attributes:
        source: where they came from.
        taken: names in the module.
        new: names in the module that the file has not.
        left: names in the file that were not taken.
        notes: what was recognised, changed and decided.
        known_rows: by the name of a head, (c,) bool: which rows of this rank were taken.
        identities: that the source was trained on, where it knows their names.
    """

    source: str
    taken: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    known_rows: dict[str, Tensor] = field(default_factory=dict)
    identities: Identities | None = None

    def __str__(self) -> str:
        """All of it in one line."""
        said = [*self.notes, f"{len(self.taken)} tensors taken"]
        said += [f"{len(names)} {word} ({_some(names)})" for word, names in _groups(self) if names]
        return f"init_from={self.source}: {'; '.join(said)}."


def init_from(
    module: nn.Module,
    source: str,
    *,
    parts: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    by_position: bool = False,
    comm: Comm | None = None,
) -> Report:
    """Give a module the weights of another run, of a file or of a hub. With several ranks every rank calls it.

    ``source`` is a checkpoint of this package (file or folder, of any number of ranks), a run folder, a checkpoint of
    Lightning, a state dict, safetensors, a folder of the Hugging Face hub, or ``hf-hub:OWNER/MODEL``. Prefixes of names
    such as ``module.``, ``_orig_mod.``, ``model.``, ``net.`` and ``backbone.`` are recognised. Position embeddings are
    interpolated, a stem for another number of channels is summed or repeated. Rows of a head go by the names of the
    classes; classes that the source does not know keep their initial centers.

    Args:
        module: with a ``backbone``, a ``neck`` and a head, or any; what is neither head nor neck counts as backbone.
        source: where the weights are.
        parts: of ``backbone``, ``neck`` and ``head``, those that must be found; None takes what is there.
        class_names: of the head's classes, in order.
        by_position: row i is class i, whatever the names say.
        comm: the ranks; None: those of the module's head.

    Returns:
        What was taken, is new and was left; it has been said too.

    Raises:
        FileNotFoundError: there is nothing.
        CheckpointError: on every rank, before anything is changed: the source is damaged, holds other things than
            tensors and plain values, or is of another architecture.
        ValueError: for a part that does not exist.
    """
    wanted = check_parts(parts)
    heads = {plain(name): head for name, head in iter_heads(module)}
    talk = comm or next((head.comm for head in heads.values()), Comm.single())
    report = Report(source)
    error: Exception | None = None
    values: dict[str, Tensor] = {}
    weights: Weights | None = None
    prefix = ""
    try:
        weights = open_weights(source)
        values, prefix = _plan(module, weights, wanted, parts is not None, report)
    except (CheckpointError, OSError) as found:
        error = found
    raise_on_all(talk, "init_from", error)
    assert weights is not None
    report.identities = weights.identities
    if "head" in wanted and heads:
        names = None if class_names is None else Identities.of(class_names)
        must = parts is not None
        take_head(heads, weights, prefix, names, talk, report, must=must, by_position=by_position)
    live = {plain(name): value for name, value in module.state_dict(keep_vars=True).items()}
    with torch.no_grad():
        for name, value in values.items():
            live[name].detach().copy_(value)
    if not report.taken:
        raise CheckpointError(f"init_from={source}: nothing in it is of this module ({_some(list(weights.shapes))}).")
    rank_zero_info(str(report))
    return report


def check_parts(parts: Sequence[str] | None) -> tuple[str, ...]:
    """The parts that are to be taken.

    Raises:
        ValueError: for one that does not exist.
    """
    for part in parts or ():
        if part not in PARTS:
            raise ValueError(f"init_parts={list(parts or ())}: {part!r} does not exist; there are {', '.join(PARTS)}.")
    return PARTS if parts is None else tuple(parts)


def _plan(
    module: nn.Module, weights: Weights, parts: Sequence[str], must: bool, report: Report
) -> tuple[dict[str, Tensor], str]:
    """The values of backbone and neck by their names in the module; and what comes before a module's names."""
    heads = tuple(f"{plain(name)}." for name, _ in iter_heads(module))
    state = {plain(name): value for name, value in module.state_dict().items()}
    own = {name: value for name, value in state.items() if not name.startswith(heads or ("\0",))}
    network = getattr(module, "backbone", module)
    within = BACKBONE if network is not module else ""
    trunk = {name.removeprefix(within): t for name, t in own.items() if not name.startswith(NECK)}
    try:
        named = plain_names(weights.shapes)
        prefix = find_prefix(named, trunk)
    except CheckpointError as error:
        raise CheckpointError(f"init_from={report.source}: {error}") from error
    if prefix not in (None, "", within):
        report.notes.append(f"names without {prefix!r}")
    if len(named) and any("_orig_mod." in name for name in weights.shapes):
        report.notes.append("names without '_orig_mod.'")
    around = outer(prefix)
    of_parts = (f"{around}{NECK}", *(f"{around}{head}" for head in heads))
    there = {n: t for n, t in below(named, prefix or "").items() if not f"{prefix or ''}{n}".startswith(of_parts)}
    values: dict[str, Tensor] = {}
    if "backbone" in parts and (there or must):
        values |= _named(within, _take("backbone", there, trunk, network, weights, report, strict=True))
    neck = {name.removeprefix(NECK): t for name, t in own.items() if name.startswith(NECK)}
    of_neck = below(named, f"{around}{NECK}")
    if "neck" in parts and neck:
        values |= _named(NECK, _take("neck", of_neck, neck, module, weights, report, strict=must))
    report.taken += values
    report.new += [name for name in own if name not in values and not name.endswith(_COUNTER)]
    used = {there[n.removeprefix(within)] for n in values if n.removeprefix(within) in there}
    used |= {of_neck[n.removeprefix(NECK)] for n in values if n.startswith(NECK)}
    inner_heads = tuple(f"{around}{head}" for head in heads)
    report.left += [raw for name, raw in named.items() if raw not in used and not name.startswith(inner_heads or "\0")]
    return values, around


def _take(
    part: str,
    there: Mapping[str, str],
    here: Mapping[str, Tensor],
    network: nn.Module,
    weights: Weights,
    report: Report,
    strict: bool,
) -> dict[str, Tensor]:
    """The tensors of a part, in the shapes that it has.

    Raises:
        CheckpointError: too much is missing, is left over or does not fit, for this to be the same architecture.
    """
    stem = next((name for name, tensor in here.items() if tensor.dim() == 4), None)
    values: dict[str, Tensor] = {}
    notes, unfit = [], []
    for name, target in here.items():
        if name not in there:
            continue
        value = weights.whole(there[name])
        if wrong := why_no_weights(value, target.is_floating_point()):
            raise CheckpointError(f"init_from={report.source}: {name} {wrong}")
        found = fitted(name, value, target, network, name == stem)
        if found is None:
            unfit.append(f"{name} is {weights.shapes[there[name]]} there and {tuple(target.shape)} here")
            continue
        if not (all_finite(found[0]) and all_finite(found[0].to(target.dtype))):
            raise CheckpointError(
                f"init_from={report.source}: {name} holds NaN or infinity, so the run that wrote it had diverged. Give "
                "an earlier checkpoint."
            )
        values[name] = found[0]
        notes += [found[1]] if found[1] else []
    missing = [name for name in here if name not in values and not name.endswith(_COUNTER)]
    spare = [n for n in there if n not in here and not n.endswith(_COUNTER) and n.split(".")[0] not in _CLASSIFIERS]
    if len(missing) > _MOST_MISSING * len(here) or (part == "backbone" and len(spare) > _MOST_MISSING * len(here)):
        what = unfit[0] if unfit else f"{part} has {_some(list(here), 2)}, and the file {_some(list(there), 2)}"
        if strict:
            raise CheckpointError(
                f"init_from={report.source} is of another architecture: of {len(here)} tensors of the {part} "
                f"{len(missing)} are missing or of another shape, and {len(spare)} are there that it has not; {what}. "
                "Give backbone= and backbone.embedding_dim= as they were, or other weights, or leave the part out of "
                "init_parts."
            )
        report.notes.append(f"the {part} is new: {what if there else 'the file has none'}")
        return {}
    report.notes += [*notes, *(f"new: {each}" for each in unfit)]
    return values


def _named(prefix: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in values.items()}


def _groups(report: Report) -> list[tuple[str, list[str]]]:
    return [("new", report.new), ("left", report.left)]


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
