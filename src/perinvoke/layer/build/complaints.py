"""What pip prints when it fails, read for what it means. Pure: text in, an error out. Seen with pip 23.2, 24.2 and 26.3."""

from __future__ import annotations

import re
import sys
import tempfile
from typing import TYPE_CHECKING

from perinvoke.layer.errors import LayerError, LayerUnavailable

if TYPE_CHECKING:
    from perinvoke.layer.build.targets import Target

_OFFLINE = re.compile(r"Retrying \(|NewConnectionError|Max retries exceeded|Could not fetch URL|ProxyError|timed out")
_OFFLINE_REASON = re.compile(
    r"\[Errno -?\d+\] [\w ,]+|CERTIFICATE_VERIFY_FAILED[^\"')]*|[Rr]ead timed out|[Cc]onnection timed out|\bproxy\b[^'\"]*"
)
_NO_WHEEL = re.compile(r"No matching distribution found for (\S+)")
_MISMATCH = re.compile(r"DO NOT MATCH THE HASHES.*?\n\s+(\S+).*?Expected sha256 (\w+).*?Got\s+(\w+)", re.DOTALL)
_DENIED = re.compile(r"\b40[13]\b.*(Error|Unauthorized|Forbidden)")
_NO_SPACE = re.compile(r"No space left|Disk quota exceeded")
_CREDENTIALS = re.compile(r"(?<=//)[^/\s@]+@")
_VERSIONS = re.compile(r" ?\(from versions: [^)]*\)")
_NO_NEWS = re.compile(r"\[notice\]|WARNING: (Retrying|Location .* is ignored)")


def error_from(target: Target, printed: str, code: int) -> LayerError | LayerUnavailable:  # noqa: PLR0911 - one for each kind of complaint
    """The error that pip's complaints amount to."""
    last = last_line(printed) or f"exit code {code}"
    pip = f"{sys.executable} -m pip"
    if "No module named pip" in printed:
        return LayerError(
            f"{sys.executable} has no pip, which fetches what goes into the layer. Run: {sys.executable} -m ensurepip "
            "(in an environment of uv: uv pip install pip)"
        )
    if match := _MISMATCH.search(printed):
        return LayerError(
            f"{match[1]}: the index has another file than the one that is locked (SHA-256 {match[2][:12]}… expected, "
            f"{match[3][:12]}… got). Nothing was built. If the index is a mirror of yours, look at what it serves"
        )
    if match := _NO_SPACE.search(printed):
        return LayerUnavailable(f"no space for wheels in {tempfile.gettempdir()} ({match[0]}). Make room, or set TMPDIR")
    if match := _DENIED.search(printed):
        line = next(line for line in printed.splitlines() if match[0] in line)
        return LayerError(f"the package index doesn't let pip in: {_clean(line)}. See: {pip} config list")
    if _OFFLINE.search(printed):
        reason = _OFFLINE_REASON.search(printed)
        return LayerUnavailable(
            f"pip can't reach the package index: {_clean(reason[0]) if reason else last}. Check the network and the proxy, or "
            "name a mirror (PIP_INDEX_URL) or a folder of wheels (PIP_NO_INDEX=1 PIP_FIND_LINKS=folder)"
        )
    if match := _NO_WHEEL.search(printed):
        warning = "".join(f" ({_clean(line)})" for line in _telling(printed, "WARNING:")[-1:])
        return LayerError(
            f"pip finds no wheel of {match[1]} for {target}, whose glibc is 2.{target.glibc_minor}{warning}. "
            f"See where it looks: {pip} config list. Or leave that target out, with --python or --arch"
        )
    return LayerError(f"pip can't fetch what goes into the layer for {target}: {last}")


def last_line(printed: str) -> str:
    """The last thing pip says that means something, without credentials."""
    lines = _telling(printed, "ERROR:") or _telling(printed, "WARNING:") or _telling(printed, "")
    return _clean(lines[-1]) if lines else ""


def _telling(printed: str, beginning: str) -> list[str]:
    lines = [line.strip() for line in printed.splitlines()]
    return [line for line in lines if line and line.startswith(beginning) and not _NO_NEWS.match(line)]


def _clean(line: str) -> str:
    text = _VERSIONS.sub("", _CREDENTIALS.sub("****@", line.strip()))
    return text.removeprefix("ERROR: ").removeprefix("WARNING: ").rstrip(".")[:300]
