"""URIs: one spelling for each place, and no secrets in what is shown or stored. A local path is a URI too."""

from __future__ import annotations

import os
import re

import fsspec

SCHEME_ALIASES = {"local": "file", "s3a": "s3", "s3n": "s3", "gcs": "gs"}
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")
_URI_IN_TEXT = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://[^\s'\"<>]+")
_SECRET_PARAMETER = re.compile(
    r"x-(amz|goog)-(signature|credential|security-token)|awsaccesskeyid|googleaccessid|signature|sig"
    r"|token|access_token|auth|authorization|api_?key|secret|password|passwd|pwd",
    re.IGNORECASE,
)


def canonical_uri(uri: str) -> str:
    """Return the one spelling of a place: `file:///absolute/path` for local paths, aliases of a scheme resolved.

    Symbolic links are not followed, and nothing is looked up.
    """
    if is_chained(uri):
        return uri
    match = _SCHEME.match(uri)
    scheme = match.group(1).lower() if match else "file"
    scheme = SCHEME_ALIASES.get(scheme, scheme)
    rest = uri[match.end() :] if match else uri
    if not match and uri.startswith("file:"):
        rest = uri[5:]
    if scheme == "file":
        return "file://" + os.path.abspath(os.path.expanduser(rest))
    if scheme == "memory":
        return "memory://" + "/" + rest.strip("/")
    if scheme in ("http", "https"):
        host, slash, path = rest.partition("/")
        return f"{scheme}://{host.lower() if '@' not in host else host}{slash}{path}"
    return f"{scheme}://{rest}"


def redact(uri: str) -> str:
    """Return `uri` without user information and without query parameters that grant access."""
    match = _SCHEME.match(uri)
    if not match or match.group(1).lower() in ("file", "local", "memory"):
        return uri
    netloc, slash, path = uri[match.end() :].partition("/")
    path, mark, query = path.partition("?")
    if mark:
        query = "&".join(p for p in query.split("&") if not _SECRET_PARAMETER.fullmatch(p.partition("=")[0]))
    host = netloc.rpartition("@")[2]
    return f"{match.group()}{host}{slash}{path}{mark if query else ''}{query}"


def has_secret(uri: str) -> bool:
    """Return whether a URI carries credentials."""
    return redact(uri) != uri.rstrip("?")


def redact_text(text: str) -> str:
    """Return an error message with every URI in it redacted."""
    return _URI_IN_TEXT.sub(lambda match: redact(match.group()), text)


def join_uri(folder: str, name: str) -> str:
    """Return `name` relative to `folder`; a URI or an absolute path stands for itself."""
    if _SCHEME.match(name) or name.startswith(("/", "~", "file:")):
        return canonical_uri(name)
    base = canonical_uri(folder).rstrip("/")
    scheme, rest = base.split("://", 1)
    top, slash, path = rest.partition("/")
    if scheme == "file":
        return canonical_uri(f"{rest}/{name}")
    return f"{scheme}://{top}/" + os.path.normpath(f"/{path}/{name}").lstrip("/")


def parent_uri(uri: str) -> str:
    """Return the folder of a file, without a slash at the end."""
    return canonical_uri(uri).rpartition("/")[0]


def scheme_of(uri: str) -> str:
    """Return the scheme of a URI, `file` for a local path."""
    return canonical_uri(uri).partition("://")[0]


def is_chained(uri: str) -> bool:
    """Return whether a URI is fsspec's `zip://inside::s3://outside`; a local file name may hold `::` too."""
    first, chain, rest = uri.partition("::")
    return bool(chain) and (bool(_SCHEME.match(first)) or (first in fsspec.available_protocols() and "://" in rest))
