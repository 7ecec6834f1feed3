"""The page to try the service with: four static files, nothing from anywhere else."""

from __future__ import annotations

from importlib import resources

from fastapi import APIRouter, Response

from lightning_pfc.service.errors import RequestError

router = APIRouter(include_in_schema=False)

_FILES = {
    "": ("index.html", "text/html; charset=utf-8"),
    "app.js": ("app.js", "text/javascript; charset=utf-8"),
    "style.css": ("style.css", "text/css; charset=utf-8"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


@router.get("/page/{name}")
@router.get("/page/")
async def page(name: str = "") -> Response:
    """A file of the page."""
    if name not in _FILES:
        raise RequestError(404, "the page has no such file.")
    file, kind = _FILES[name]
    content = (resources.files("lightning_pfc.service") / "static" / file).read_bytes()
    return Response(content, media_type=kind, headers=_HEADERS)
