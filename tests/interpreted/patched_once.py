"""Triton's interpreter puts its functions in place of the language's at each call of each function; here it does once.

That was a third of the time of these tests, and nothing in their process wants the functions that were there before.
"""

from __future__ import annotations

from typing import Any


def install() -> None:
    """Keep what the interpreter has patched; one that patches in another way is left as it is."""
    from triton.runtime import interpreter

    patch = getattr(interpreter, "_patch_lang", None)
    scope = getattr(interpreter, "_LangPatchScope", None)
    if patch is None or scope is None:
        return
    patched: set[str] = set()

    def patch_once(function: Any) -> Any:
        languages = _languages_of(function)
        if not languages or not languages <= patched:
            patch(function)  # what would undo it is dropped
            patched.update(languages)
        return scope()  # has nothing to undo

    interpreter._patch_lang = patch_once  # type: ignore[attr-defined]


def _languages_of(function: Any) -> set[str]:
    """Under which modules a kernel's file knows the language: those are patched."""
    known = ("triton.language", "triton.language.core")
    return {name for value in function.__globals__.values() if (name := getattr(value, "__name__", "")) in known}
