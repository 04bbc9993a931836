"""What a request's ``If-Match`` names: RFC 9110, 8.8.3 (ETag) and 13.1.1 (If-Match)."""

from __future__ import annotations

import re

from perinvoke.fleet.errors import TokenInvalid

_TAG = re.compile(r'(?P<weak>W/)?"(?P<text>[\x21\x23-\x7e\x80-\xff]*)"')  # what RFC 9110 calls an entity-tag
# RFC 9110, 15.5.1 and 15.5.13; RFC 6585, 3.
_BAD_REQUEST, _PRECONDITION_FAILED, _PRECONDITION_REQUIRED = 400, 412, 428


def tag_in(header: object) -> str:
    """The one strong entity tag of a header's value, without its quotes.

    Raises:
        TokenInvalid: there is no header; or it names any version, several, or a weak one.
    """
    if header is None:
        raise _invalid(header, _PRECONDITION_REQUIRED, "there is no If-Match header: send the ETag of what was read")
    if not isinstance(header, str):
        raise _invalid(repr(header), _BAD_REQUEST, "If-Match must be a string: pass the header's value as it came")
    text = header.strip()
    if text == "*":
        # It asks for a write whatever stands there, which is what an ETag is to prevent; a server may demand more than that.
        raise _invalid(header, _PRECONDITION_REQUIRED, "If-Match is *, which any version matches: send the ETag of what was read")
    tag = _TAG.fullmatch(text)
    if tag is None:
        raise _invalid(header, _BAD_REQUEST, "If-Match isn't one ETag in its quotes: send that of what was read, as it came")
    if tag["weak"]:
        # A weak tag never matches here: the comparison is the strong one. Proxies that compress make strong ones weak.
        raise _invalid(header, _PRECONDITION_FAILED, "If-Match has a weak ETag, which matches nothing: send it without W/")
    return tag["text"]


def matches_nothing(header: object) -> TokenInvalid:
    """The error of a tag that can't be one of ours."""
    return _invalid(str(header), _PRECONDITION_FAILED, "If-Match has an ETag that matches nothing: send that of what was read")


def _invalid(header: str | None, status: int, message: str) -> TokenInvalid:
    shown = "" if header is None else f" (it was {header[:100]!r})"
    return TokenInvalid(message + shown, token=header, status=status)
