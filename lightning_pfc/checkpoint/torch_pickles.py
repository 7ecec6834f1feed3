"""Looks through the pickle in a file of ``torch.save`` before ``torch.load`` follows it.

``torch.load(weights_only=True)`` runs no code, but does whatever else a pickle says: looks up a key of tuples in tuples
without end, makes as many bytes as a number claims, calls the classes of tensors. What ``torch.save`` writes needs none
of it.
"""

from __future__ import annotations

from typing import Any

import torch

from lightning_pfc.storage.pickles import Name, PickleReader, Span

_LARGEST_CALL = 1000  # values in the arguments of a call that makes a tensor
_MOST_DEPTH = 50
_DICTS = ("collections.OrderedDict", "collections.Counter")
_MAKERS = {
    *(f"torch._utils._rebuild_{name}" for name in ("parameter", "parameter_with_state", "tensor", "tensor_v2")),
    *(f"torch._utils._rebuild_{name}" for name in ("tensor_v3", "sparse_tensor", "meta_tensor_no_storage")),
    "torch._utils._rebuild_device_tensor_from_cpu_tensor",
    "torch._tensor._rebuild_from_type_v2",
    "torch.nn.parameter.Parameter",
    "torch.device",
    "torch.serialization._get_layout",
}


class _Made:
    """What a call has made, and is looked up by its identity: a tensor, a storage, something of the user's."""


class _Complex:
    """A complex number: not a key, since many can be chosen that a dict cannot tell apart quickly."""


def check_pickle(content: bytes) -> dict[str, int]:
    """See that a pickle does what those of ``torch.save`` do, or what the user has allowed by ``add_safe_globals``.

    Returns:
        How many bytes each record of the archive must have, by its name.

    Raises:
        PickleError: saying what else it does.
    """
    reader = _TorchReader(content)
    reader.run()
    return reader.needed


class _TorchReader(PickleReader):
    longest_number = 255

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.allowed = _allowed()
        self.needed: dict[str, int] = {}

    def name(self, module: str, attribute: str) -> Name:
        return Name(f"{'builtins' if module == '__builtin__' else module}.{attribute}")

    def persistent(self, key: Any) -> Any:
        """A storage: its type, the name of its record, a device, a number of elements."""
        if isinstance(key, tuple) and len(key) == 5:
            _, kind, record, device, count = key
            plain = isinstance(record, str | int | Span) and isinstance(device, str | Span)
            if isinstance(kind, Name) and plain and isinstance(count, int):
                if not (kind.role.startswith("torch.") and kind.role.endswith("Storage")):
                    self.refuse(f"a storage of {kind.role[:80]}")
                self.need(record, count * _bytes_of_a_number(kind.role))
                return _Made()
        return self.refuse("it refers to what is no storage")

    def need(self, record: Any, length: int) -> None:
        if isinstance(record, Span):
            record = self.bytes_of(record).decode("utf-8", "replace")
        name = f"data/{record}"
        self.needed[name] = max(length, self.needed.get(name, 0))

    def is_plain_key(self, value: Any) -> bool:
        return isinstance(value, Name | _Made)

    def call(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        if not isinstance(function, Name):
            self.refuse("a call of something that is no name")
        if function.role in self.allowed:
            return self.call_allowed(self.allowed[function.role])
        if function.role in _DICTS:
            return self.make_dict(*arguments[:1])
        if function.role in _PLAIN:
            return _PLAIN[function.role](self, arguments)  # type: ignore[no-untyped-call]
        if function.role not in _MAKERS:
            self.refuse(f"a call of {function.role[:80]}")
        if function.role == "torch._tensor._rebuild_from_type_v2":
            self.check_inner(arguments)
        self.check_small(arguments)
        return _Made()

    def call_allowed(self, function: Any) -> Any:
        for kind in (dict, list, set):
            if isinstance(function, type) and issubclass(function, kind):
                return kind()
        return _Made()

    def check_inner(self, arguments: tuple[Any, ...]) -> None:
        inner = arguments[0] if arguments else None
        if not isinstance(inner, Name) or not (inner.role in _MAKERS or inner.role in self.allowed):
            self.refuse("a call of something that is not on the list")

    def check_small(self, arguments: Any) -> None:
        """What stands in them may be looked up, or be written into an error, as often as it is there."""
        left = _LARGEST_CALL
        waiting = [(arguments, 0)]
        while waiting:
            value, depth = waiting.pop()
            left -= 1
            if left < len(waiting) or depth > _MOST_DEPTH:
                self.refuse("a call with more in it than a tensor needs")
            if isinstance(value, dict):
                value = list(value.values()) if len(value) < _LARGEST_CALL else [None] * _LARGEST_CALL
            if isinstance(value, list | tuple):
                waiting += [(part, depth + 1) for part in value[:_LARGEST_CALL]]

    def make_dict(self, content: Any = ()) -> dict[Any, Any]:
        if not isinstance(content, dict | list | tuple | set):
            self.fail("a dict of what is no list")
        self.charge(len(content))
        if isinstance(content, dict):
            return dict(content)
        if all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in content):
            return self.fill({}, content)  # type: ignore[no-any-return]
        return {self.key(value): 1 for value in content}  # a Counter

    def make_set(self, arguments: tuple[Any, ...]) -> set[Any]:
        content = arguments[0] if arguments else ()
        if not isinstance(content, dict | list | tuple | set):
            self.fail("a set of what is no list")
        self.charge(len(content))
        return {self.key(value) for value in content}

    def make_size(self, arguments: tuple[Any, ...]) -> tuple[int, ...]:
        sizes = arguments[0] if arguments else ()
        if not isinstance(sizes, list | tuple) or not all(isinstance(n, int) for n in sizes):
            self.fail("a shape that is no list of numbers")
        self.charge(len(sizes))
        return tuple(sizes)

    def make_bytes(self, arguments: tuple[Any, ...]) -> Any:
        content = arguments[0] if arguments else b""
        if isinstance(content, str):
            return self.encoded(arguments)
        if not isinstance(content, list | bytes | Span):
            self.refuse(f"bytes made of a {type(content).__name__}")
        self.charge(len(content))
        return Span(0, 0) if isinstance(content, list) else content

    def make_complex(self, arguments: tuple[Any, ...]) -> _Complex:
        if len(arguments) > 2 or not all(isinstance(part, int | float) for part in arguments):
            self.fail("a complex number of what is none")
        return _Complex()

    def set_state(self, target: Any, state: Any) -> None:
        """Attributes: of an ``OrderedDict`` of tensors its versions, of the user's classes whatever they need."""
        if isinstance(target, dict) and isinstance(state, dict):
            self.charge(len(state))
        elif not (self.allowed and isinstance(target, _Made | list | set | dict)):
            super().set_state(target, state)


_PLAIN = {
    "torch.Size": _TorchReader.make_size,
    "builtins.set": _TorchReader.make_set,
    "builtins.bytearray": _TorchReader.make_bytes,
    "builtins.complex": _TorchReader.make_complex,
    "_codecs.encode": lambda reader, arguments: reader.encoded(arguments),
}


def _bytes_of_a_number(storage: str) -> int:
    """Of a type of storage, as torch names it; 1 where there is none of the name, which torch refuses by itself."""
    dtype = getattr(getattr(torch, storage.rpartition(".")[2], None), "dtype", None)  # none of an UntypedStorage
    return dtype.itemsize if isinstance(dtype, torch.dtype) else 1


def _allowed() -> dict[str, Any]:
    """What the user has allowed, by name."""
    found: dict[str, Any] = {}
    for each in torch.serialization.get_safe_globals():
        function, name = each if isinstance(each, tuple) else (each, f"{each.__module__}.{each.__qualname__}")
        found[name] = function
    return found
