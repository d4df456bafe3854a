"""The page at /: files beside this module, as they are."""

from functools import cache
from importlib.resources import files

from raybert.serve.errors import ApiError
from raybert.serve.http import Reply, shown

_TYPES = {"html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8"}
_TYPES |= {"js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}
# nothing from elsewhere, and nobody's frame
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
)
_POLICY += "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def file(path: str) -> Reply:
    """/ is index.html, /page/NAME the file of that name. Raises ApiError 404."""
    name = "index.html" if path == "/" else path.removeprefix("/page/")
    content = _files().get(name)
    if content is None:
        raise ApiError(404, f"there is no {shown(path)}", code="not_found")
    headers = {
        **{"content-security-policy": _POLICY, "x-content-type-options": "nosniff"},
        **{"referrer-policy": "no-referrer", "cache-control": "no-cache"},
    }
    return Reply(content, 200, headers, _TYPES[name.rpartition(".")[2]])


@cache
def _files() -> dict[str, bytes]:
    """Read once; a name that is not among them leads nowhere."""
    folder = files("raybert.serve") / "static"
    return {
        each.name: each.read_bytes() for each in folder.iterdir() if each.name.rpartition(".")[2] in _TYPES
    }
