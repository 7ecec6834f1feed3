"""Thresholds: values with a name, the rate that each stands for, and where it was chosen."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

Kind = Literal["verification", "identification"]

_KINDS = ("verification", "identification")
_FLIPS = ("none", "sum")


class NotCalibratedError(ValueError):
    """A threshold was asked for by a name that the model does not have."""


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A cosine above which two pictures are taken for one identity, and what that costs.

    Attributes:
        name: By which it is asked for, such as ``"far=1e-4"``.
        kind: ``"verification"``: of one pair; ``"identification"``: of the best match in a gallery.
        value: Accept when the score is above it.
        rate: What it promises: the share of impostor pairs accepted (verification), or of strangers who find a match in
            the gallery (identification).
        interval: Between which bounds the rate of a new set lies, at ``level``: as many other identities (or pairs) of
            the same kind as it was chosen on.
        level: Of the interval.
        value_interval: Between which bounds the threshold itself would have come out on such a set.
        accept_rate: Share of genuine pairs accepted, or of mated probes found first and accepted.
        accept_interval: Its interval, at ``level``.
        gallery: Identities in the gallery, for identification.
        flip: Embeddings it was chosen on: ``"none"``, or ``"sum"`` of picture and mirror image.
        unit: What the bootstrap drew: ``"identities"`` or ``"pairs"``.
        false_accepts: Impostors accepted where it was chosen; the rate is as sure as these are many.
        trials: Impostor pairs, or strangers' searches, that it was chosen on.
        identities: How many identities these showed; None where they have no names.
        chosen_on: The set, in words.
        second_sets: What it did elsewhere, by name of the set: ``rate``, ``accept_rate``, ``expected`` (the interval
            for a set of that size), ``inside``.
        model: Fingerprint of the weights.
    """

    name: str
    kind: Kind
    value: float
    rate: float
    interval: tuple[float, float]
    level: float = 0.95
    value_interval: tuple[float, float] | None = None
    accept_rate: float | None = None
    accept_interval: tuple[float, float] | None = None
    gallery: int | None = None
    flip: Literal["none", "sum"] = "none"
    unit: Literal["identities", "pairs"] = "identities"
    false_accepts: int = 0
    trials: int = 0
    identities: int | None = None
    chosen_on: str = ""
    second_sets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    model: str = ""

    def accepts(self, score: float) -> bool:
        """Whether a score is above it."""
        return score > self.value

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the name."""
        content = dataclasses.asdict(self)
        del content["name"]
        return content

    @classmethod
    def from_dict(cls, name: str, content: Any) -> Threshold:
        """From what :meth:`to_dict` gives.

        Raises:
            ValueError: a value is missing, unknown or of another type or range; names it.
        """
        if not isinstance(content, Mapping):
            raise ValueError(f"threshold {name!r} is {type(content).__name__}, not an object")
        known = {f.name: f for f in dataclasses.fields(cls) if f.name != "name"}
        if unknown := sorted(set(content) - set(known)):
            raise ValueError(f"threshold {name!r} has an unknown entry {unknown[0]!r}")
        values = dict(content)
        for key in ("value", "rate"):
            values[key] = _number(name, key, values.get(key))
        for key, choices in (("kind", _KINDS), ("flip", _FLIPS)):
            if values.get(key, choices[0]) not in choices or (key == "kind" and key not in values):
                raise ValueError(f"threshold {name!r}: {key}={values.get(key)!r} is none of {', '.join(choices)}")
        for key in ("interval", "value_interval", "accept_interval"):
            values[key] = _interval(name, key, values.get(key))
        if values["interval"] is None:
            raise ValueError(f"threshold {name!r} lacks its interval")
        if not 0 < values["rate"] < 1:
            raise ValueError(f"threshold {name!r}: rate={values['rate']} must lie between 0 and 1")
        return cls(name=name, **{str(key): value for key, value in values.items()})


class Thresholds(Mapping[str, Threshold]):
    """Thresholds by name; the first is the one that is meant when none is named.

    Args:
        thresholds: In order.
        source: What they belong to, for messages.
    """

    def __init__(self, thresholds: Mapping[str, Threshold] | None = None, source: str = "the model") -> None:
        self._by_name = dict(thresholds or {})
        self.source = source

    def __getitem__(self, name: str) -> Threshold:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def get_named(self, name: str) -> Threshold:
        """The threshold of a name.

        Raises:
            NotCalibratedError: there is none of that name; says which there are and how to make one.
        """
        if name in self._by_name:
            return self._by_name[name]
        if not self._by_name:
            raise NotCalibratedError(
                f"threshold {name!r}: {self.source} was never calibrated. Choose one with `pfc-eval run=RUN "
                "calibrate.far=1e-4` and export again."
            )
        close = difflib.get_close_matches(name, self._by_name, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise NotCalibratedError(
            f"threshold {name!r} does not exist in {self.source}.{hint} There are: {', '.join(self._by_name)}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, by name."""
        return {name: threshold.to_dict() for name, threshold in self._by_name.items()}

    @classmethod
    def from_dict(cls, content: Any, source: str) -> Thresholds:
        """From what :meth:`to_dict` gives.

        Raises:
            ValueError: as :meth:`Threshold.from_dict`.
        """
        if not isinstance(content, Mapping):
            raise ValueError(f"thresholds are {type(content).__name__}, not an object")
        return cls({str(n): Threshold.from_dict(str(n), entry) for n, entry in content.items()}, source)


def _number(name: str, key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"threshold {name!r}: {key}={value!r} is not a number")
    return float(value)


def _interval(name: str, key: str, value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"threshold {name!r}: {key}={value!r} is not a pair of numbers")
    low, high = (_number(name, key, part) for part in cast("list[Any]", value))
    return low, high
