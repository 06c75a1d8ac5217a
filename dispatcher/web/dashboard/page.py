"""The page and its assets. Nothing is loaded from another host."""

from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

_ASSETS: Final = Path(__file__).parent / "assets"

HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
}
"""Headers that forbid inline scripts, content of other hosts, and frames around the page."""


def page_routes() -> list[BaseRoute]:
    """Routes for the page and its assets."""
    return [
        Route("/", _to_page),
        Route("/dashboard", _to_page),
        Route("/dashboard/", _page),
        Mount("/dashboard/assets", _Assets(directory=_ASSETS)),
    ]


async def _to_page(_request: Request) -> Response:
    return RedirectResponse("/dashboard/")


async def _page(_request: Request) -> Response:
    return FileResponse(_ASSETS / "index.html", headers=HEADERS)


class _Assets(StaticFiles):
    """Assets that browsers check before each use: a newer page must not load older scripts."""

    def file_response(self, *args: object, **kwargs: object) -> Response:
        response = super().file_response(*args, **kwargs)  # type: ignore[arg-type]
        response.headers["Cache-Control"] = "no-cache"
        return response
