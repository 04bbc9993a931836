"""A version as an HTTP entity tag, and back: RFC 9110, 8.8.3 (ETag) and 13.1.1 (If-Match).

``"3.Ab12Cd34.Ef56Gh78"`` is version 3 and its last writers' marks. They make it strong: the version 3 of an item that was deleted
and made anew is another one. ``"missing"`` is no item; ``"unversioned"`` is one that nobody has counted yet. That one is as
strong as can be told: those who write without counting are not seen.
"""

from __future__ import annotations

import re

from perinvoke.fleet.dynamodb.write_marks import Version, marks_text, parse_marks
from perinvoke.fleet.if_match import matches_nothing, tag_in

_MISSING, _UNVERSIONED = "missing", "unversioned"
_OURS = re.compile(r"(?P<number>-?\d{1,38})\.(?P<marks>.*)")


def etag_of(version: Version) -> str:
    """A strong entity tag, in its quotes."""
    if not version.exists:
        return f'"{_MISSING}"'
    if version.number is None:
        return f'"{_UNVERSIONED}"'
    return f'"{version.number}.{marks_text(version.marks)}"'


def parse_if_match(header: object) -> Version:
    """The version that a request's ``If-Match`` names.

    Raises:
        TokenInvalid: there is none; or it names any version, several, a weak one, or one that isn't ours.
    """
    version = _parse(tag_in(header))
    if version is None:
        raise matches_nothing(header)
    return version


def _parse(text: str) -> Version | None:
    if text == _MISSING:
        return Version(None, exists=False)
    if text == _UNVERSIONED:
        return Version(None)
    ours = _OURS.fullmatch(text)
    if ours is None:
        return None
    version = Version(int(ours["number"]), parse_marks(ours["marks"]))
    return version if etag_of(version) == f'"{text}"' else None
