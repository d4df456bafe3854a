"""Paths and URIs: which file system opens them, and how they are named without credentials."""

import functools
import os
import re
from urllib.parse import parse_qsl, unquote, urlencode

import fsspec
import pyarrow as pa
from pyarrow import fs as pafs

_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
# `part-?.parquet` is a glob, `?region=eu-west-1` are options.
_QUERY = re.compile(r"\?([A-Za-z_][\w.-]*=[^*\[\]]*)$")
_ALIASES = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "local": "file"}
_ARROW_SCHEMES = ("s3", "gs", "abfs", "abfss")


def resolve(path: str | os.PathLike[str]) -> tuple[pafs.FileSystem, str]:
    """The file system of a path or URI, and the path within it.

    Local paths are made absolute. `s3`, `gs` and `abfs` use pyarrow's own implementation with the options in the query
    (`?region=...&endpoint_override=...`); `AWS_ENDPOINT_URL` is honoured. Every other scheme goes through fsspec.
    The part after the bucket is taken literally, percent signs included.

    Raises:
        ValueError: a scheme that nothing here knows, or one whose package is not installed.
    """
    scheme, rest, query = _parse(path)
    if scheme == "file":
        return pafs.LocalFileSystem(), rest
    if scheme in _ARROW_SCHEMES:
        authority, slash, key = rest.partition("/")
        if not authority.rpartition("@")[2]:
            raise ValueError(f"{public_uri(path)}: no bucket is named")
        options = tuple(
            sorted({**_endpoint(scheme), **dict(parse_qsl(query, keep_blank_values=True))}.items())
        )
        fs, base = _arrow_filesystem(scheme, authority, options)
        return fs, f"{base.rstrip('/')}{slash}{key}".strip("/")
    try:
        fs, inner = fsspec.core.url_to_fs(f"{scheme}://{rest}" + (f"?{query}" if query else ""))
    except ImportError as error:
        raise ValueError(f"{public_uri(path)}: {scheme}:// needs a package: {_first_line(error)}") from None
    except OSError as error:
        raise ValueError(f"{public_uri(path)}: {_first_line(error)}") from None
    except ValueError as error:
        if scheme in fsspec.available_protocols():
            raise ValueError(f"{public_uri(path)}: {_first_line(error)}") from None
        raise ValueError(f"{public_uri(path)}: no file system is known for {scheme}://") from None
    return pafs.PyFileSystem(pafs.FSSpecHandler(fs)), str(inner)


def public_uri(path: str | os.PathLike[str]) -> str:
    """The name of a file wherever it is shown or stored: no user, password, key or query; the same from any folder.

    A local file is its absolute path, anything else `scheme://bucket/key`.
    """
    scheme, rest, _ = _parse(path)
    if scheme == "file":
        return rest
    authority, slash, key = rest.partition("/")
    user, _, host = authority.rpartition("@")
    # In abfs://container@account the part before the @ is no secret; a password after a colon is.
    container = user.partition(":")[0] if scheme in ("abfs", "abfss") else ""
    whole = f"{container}@{host}{slash}{key}" if container else f"{host}{slash}{key}"
    return f"{scheme}://{whole.strip('/')}"


def is_local(fs: pafs.FileSystem) -> bool:
    """Whether files of `fs` lie on this machine's disk."""
    return isinstance(fs, pafs.LocalFileSystem)


def split_query(path: str | os.PathLike[str]) -> tuple[str, str]:
    """A path and its query (`?...`, or "" for a local path): the two parts that together open it."""
    text = os.fspath(path)
    if "://" not in text or text.startswith("file://"):
        return text, ""
    found = _QUERY.search(text)
    return (text[: found.start()], found.group()) if found else (text, "")


def _parse(path: str | os.PathLike[str]) -> tuple[str, str, str]:
    """(scheme, everything after `://` without the query, the query without its `?`); local: an absolute path."""
    body, query = split_query(path)
    found = _URI.fullmatch(body)
    if found is None:
        if "://" in body:
            raise ValueError(f"{body.rpartition('@')[2]}: not a path and not a URI")
        return "file", os.path.abspath(os.path.expanduser(body)), ""
    scheme = found[1].lower()
    scheme = _ALIASES.get(scheme, scheme)
    if scheme == "file":
        return scheme, os.path.abspath("/" + unquote(found[2]).removeprefix("localhost/").lstrip("/")), ""
    return scheme, found[2], query[1:]


def _endpoint(scheme: str) -> dict[str, str]:
    """Options for another S3 server, from the environment."""
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if scheme != "s3" or not url:
        return {}
    protocol, _, host = url.rpartition("://")
    # With a region given, pyarrow does not ask AWS where the bucket lives.
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    return {"endpoint_override": host.rstrip("/"), "scheme": protocol or "https", "region": region}


@functools.lru_cache(maxsize=64)
def _arrow_filesystem(
    scheme: str, authority: str, options: tuple[tuple[str, str], ...]
) -> tuple[pafs.FileSystem, str]:
    """Cached, because making one may ask the network for the bucket's region."""
    try:
        return pafs.FileSystem.from_uri(
            f"{scheme}://{authority}" + (f"?{urlencode(options)}" if options else "")
        )
    except pa.ArrowInvalid as error:
        message = _first_line(error).replace(authority, authority.rpartition("@")[2]).partition(": '")[0]
        raise ValueError(f"{scheme}://{authority.rpartition('@')[2]}: {message}") from None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
