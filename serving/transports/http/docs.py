"""``/docs``: the page to try the API from, with its scripts served by this server."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse

_ASSETS = ("swagger-ui-bundle.js", "swagger-ui.css")


def router(title: str) -> APIRouter:
    """Routes of the page and of the two files that it loads."""
    # All links are relative, so that the page works behind a proxy that puts a prefix in front of the paths.
    page = get_swagger_ui_html(
        openapi_url="openapi.json",
        title=title,
        swagger_js_url=f"docs/{_ASSETS[0]}",
        swagger_css_url=f"docs/{_ASSETS[1]}",
        swagger_favicon_url="data:,",
    )
    folder = Path(str(files("fastapi_offline"))) / "static"
    routes = APIRouter(include_in_schema=False)
    routes.add_api_route("/docs", lambda: page, response_class=HTMLResponse)
    for name in _ASSETS:
        routes.add_api_route(f"/docs/{name}", _file(folder / name), response_class=FileResponse)
    return routes


def _file(path: Path) -> Callable[[], FileResponse]:
    def asset() -> FileResponse:
        return FileResponse(path, headers={"cache-control": "max-age=86400"})

    return asset
