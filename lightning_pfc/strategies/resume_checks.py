"""Going on with other options than those of a checkpoint: compared one by one, and each difference is said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch.optim import Optimizer

from lightning_pfc.checkpoint.errors import CheckpointError

_HOW = ("params", "foreach", "fused", "capturable", "differentiable", "maximize", "name", "param_names")
_MOST_SAID = 20
_TWINS = ("sparse",)  # what the names of this package's optimizers have before those of torch

Record = dict[str, Any]


def describe_optimizers(optimizers: Sequence[Optimizer]) -> list[Record]:
    """Class and options of optimizers as they were configured: what a checkpoint keeps of them.

    Args:
        optimizers: before they have taken a step; schedules may have been made.

    Returns:
        Of each optimizer ``name``, ``packages`` that it is made of, and ``groups``, the options of each group in plain
        values.
    """
    return [
        {
            "name": type(each).__name__,
            "packages": _packages(each),
            "groups": [_options(group) for group in each.param_groups],
        }
        for each in optimizers
    ]


def _packages(optimizer: Optimizer) -> list[str]:
    """Where its class and those that it builds on come from; this package's keep the state that torch's do."""
    bases = [cls for cls in type(optimizer).__mro__ if issubclass(cls, Optimizer) and cls is not Optimizer]
    return sorted({cls.__module__.partition(".")[0].replace("lightning_pfc", "torch") for cls in bases})


def _strangers(there: Sequence[str], here: Sequence[str]) -> bool:
    """Whether two optimizers of one name are of different libraries; users may move their own class as they like."""
    return bool(there) and not set(there) & set(here) and not {"torch", "timm"}.isdisjoint([*there, *here])


def check_same_optimizers(checkpoint: Mapping[str, Any], records: Any, optimizers: Sequence[Optimizer]) -> None:
    """See that each optimizer can go on from the state in a checkpoint.

    Args:
        checkpoint: as it was read.
        records: of :func:`describe_optimizers` when it was made; None where it does not say.
        optimizers: of this run.

    Raises:
        CheckpointError: naming both optimizers.
    """
    states = checkpoint["optimizer_states"]
    now = [type(each).__name__ for each in optimizers]
    before = [str(record["name"]) for record in records] if records else _guessed_names(checkpoint, optimizers)
    if len(states) != len(optimizers):
        raise CheckpointError(
            f"the checkpoint has the state of {len(states)} optimizers ({', '.join(before)}), and this run has "
            f"{len(optimizers)} ({', '.join(now)}). {_WAY_OUT}"
        )
    for there, here in zip(before, now, strict=True):
        if _kind(there) != _kind(here):
            raise CheckpointError(
                f"the checkpoint was made with the optimizer {there}, and this run has {here}, which cannot go on from "
                f"its state. {_WAY_OUT}"
            )
    for record, each in zip(records or (), optimizers, strict=False):
        if _strangers(packages := record.get("packages", ()), _packages(each)):
            raise CheckpointError(
                f"the checkpoint was made with the {record['name']} of {', '.join(packages)}, and this run has the "
                f"{type(each).__name__} of {', '.join(_packages(each))}, which cannot go on from its state. {_WAY_OUT}"
            )


_WAY_OUT = (
    "Give the optimizer of the checkpoint, or take its weights alone: load_from_checkpoint, then fit without ckpt_path."
)


def check_same_groups(states: Sequence[Mapping[str, Any]], optimizers: Sequence[Optimizer]) -> None:
    """See that the parameters are grouped as in a checkpoint: state is kept by their places in the groups.

    Args:
        states: of the optimizers, in the checkpoint.
        optimizers: of this run.

    Raises:
        CheckpointError: with the sizes of the groups.
    """
    for state, optimizer in zip(states, optimizers, strict=True):
        there = [len(group["params"]) for group in state["param_groups"]]
        here = [len(group["params"]) for group in optimizer.param_groups]
        if there != here:
            raise CheckpointError(
                f"{type(optimizer).__name__} has its parameters in groups of {there} in the checkpoint and of {here} "
                "in this run, so that their state is not found. Say what groups them (lr scales, weight decays, "
                "layer_decay, finetune, what is frozen) as it was, or take the weights alone: init_from=, or "
                "load_from_checkpoint, then fit without ckpt_path."
            )


class Differences:
    """The options in which optimizers differ from those of a checkpoint; those of this run come into force.

    Args:
        records: of :func:`describe_optimizers` when the checkpoint was made; None where it does not say.
        states: of the optimizers, in the checkpoint.
        configured: likewise for this run.
    """

    def __init__(self, records: Any, states: Sequence[Mapping[str, Any]], configured: Sequence[Record]) -> None:
        self.said: list[str] = []
        self._changed: list[tuple[int, int, str, Any, Any]] = []
        before = records or [{"groups": [_options(g) for g in state["param_groups"]]} for state in states]
        for number, (old, new) in enumerate(zip(before, configured, strict=False)):
            if old.get("name", new["name"]) != new["name"]:  # of one kind: a row-sparse form and the one of torch
                said = f"{old['name']} in the checkpoint, {new['name']} in this run (row_sparse)"
                self.said.append(f"optimizer: {said}, in force: this run's")
            for index, (was, now) in enumerate(zip(old["groups"], new["groups"], strict=False)):
                for key in sorted(was.keys() & now.keys()):
                    if was[key] != now[key]:
                        self._add(number, index, key, was[key], now[key], ours=records is not None or key == "lr")

    def _add(self, number: int, index: int, key: str, was: Any, now: Any, ours: bool) -> None:
        if ours:
            self._changed.append((number, index, key, was, now))
        force = "this run's" if ours else "the checkpoint's"
        text = f"optimizer {key}: {was} in the checkpoint, {now} in this run, in force: {force}"
        if text not in self.said:
            self.said.append(text)

    def bring_into_force(self, optimizers: Sequence[Optimizer]) -> None:
        """After the state was restored: the options of this run."""
        for number, index, key, was, now in self._changed:
            group = optimizers[number].param_groups[index]
            if key != "lr":
                group[key] = now
            else:
                group["lr"] = _scaled(group["lr"], was, now)
                if "initial_lr" in group:
                    group["initial_lr"] = now

    def change_schedules(self, states: Sequence[Any], optimizer_numbers: Sequence[int]) -> None:
        """Before schedules are restored: they go on where they were, from the rates of this run.

        Args:
            states: of the schedulers in the checkpoint; changed in place.
            optimizer_numbers: which optimizer each of them drives.
        """
        for state, driven in zip(states, optimizer_numbers, strict=False):
            for number, index, key, was, now in self._changed:
                if key == "lr" and number == driven:
                    for part in _with_rates(state):
                        for name in ("base_lrs", "_last_lr"):
                            rates = part.get(name)
                            if isinstance(rates, list) and index < len(rates):
                                rates[index] = _scaled(rates[index], was, now)


def differing_hyper_parameters(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The arguments of a module that are others than in its checkpoint. What this run says is in force.

    Args:
        before: in the checkpoint, in plain values. What only one of both has is not compared: it may be of another
            version.
        now: of this run.
    """
    old, new = dict(_leaves(before)), dict(_leaves(now))
    return [
        f"{key}: {_short(old[key])} in the checkpoint, {_short(new[key])} in this run, in force: this run's"
        for key in sorted(old.keys() & new.keys())
        if old[key] != new[key] and not key.startswith("optimizer.")
    ]


def sentence(differences: Sequence[str]) -> str:
    """All of them in one line."""
    more = f"; and {len(differences) - _MOST_SAID} more" if len(differences) > _MOST_SAID else ""
    return f"This run goes on from a checkpoint with other options: {'; '.join(differences[:_MOST_SAID])}{more}."


def _options(group: Mapping[str, Any]) -> Record:
    found = {key: _plain(value) for key, value in group.items() if key not in _HOW}
    if "initial_lr" in found:  # a schedule has changed lr since
        found["lr"] = found.pop("initial_lr")
    return {key: value for key, value in found.items() if value is not _NOT_PLAIN}


_NOT_PLAIN = object()


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        items = [_plain(item) for item in value]
        return _NOT_PLAIN if _NOT_PLAIN in items else items
    if hasattr(value, "item") and getattr(value, "numel", lambda: 0)() == 1:
        return value.item()
    return value if value is None or isinstance(value, bool | int | float | str) else _NOT_PLAIN


def _kind(name: str) -> str:
    """One word for an optimizer and its row-sparse form, which read each other's state."""
    name = name.lower()
    for prefix in _TWINS:
        name = name.removeprefix(prefix)
    return name


def _guessed_names(checkpoint: Mapping[str, Any], optimizers: Sequence[Optimizer]) -> list[str]:
    """Of a checkpoint that does not say: what its hyper-parameters or its options tell, else what this run has."""
    states = checkpoint["optimizer_states"]
    stored = checkpoint.get("hyper_parameters")
    said = stored.get("optimizer") if isinstance(stored, Mapping) else None
    if isinstance(said, Mapping) and isinstance(said.get("name"), str) and len(states) == 1:
        return [said["name"]]
    names = [type(each).__name__ for each in optimizers]
    names += [f"number {number}" for number in range(len(names), len(states))]
    for number, (state, optimizer) in enumerate(zip(states, optimizers, strict=False)):
        there = {key for group in state["param_groups"] for key in group if key not in _HOW} - {"initial_lr"}
        here = set(optimizer.defaults) - set(_HOW)
        if not (there <= here or here <= there):
            names[number] = f"one with the options {', '.join(sorted(there))}"
    return names[: len(states)]


def _scaled(value: float, was: float, now: float) -> float:
    return value * (now / was) if was else now


def _with_rates(state: Any) -> Iterator[dict[str, Any]]:
    """The state of a schedule, and of those that it is made of."""
    if isinstance(state, dict):
        yield state
        for part in state.get("_schedulers", ()):
            yield from _with_rates(part)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, list(value) if isinstance(value, tuple) else value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
