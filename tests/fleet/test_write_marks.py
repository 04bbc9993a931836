"""Versions, marks and ETags: pure, so that whatever happened between two looks can be tried."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perinvoke.fleet.dynamodb.etags import etag_of, parse_if_match
from perinvoke.fleet.dynamodb.write_marks import KEPT, Fate, Version, fate_of, marks_text, new_mark, parse_marks
from perinvoke.fleet.errors import TokenInvalid

MARKS = st.text("ABCDabcd0123-_", min_size=8, max_size=8)
VERSIONS = st.one_of(
    st.just(Version(None, exists=False)),
    st.just(Version(None)),
    st.builds(Version, st.integers(-(10**30), 10**30), st.lists(MARKS, max_size=KEPT)),
)
# What others do to an item meanwhile.
COUNTED, COUNTED_WITHOUT_MARK, REMOVED = "written as here", "counted up by hand", "deleted"
OTHERS = st.lists(st.sampled_from([COUNTED, COUNTED, COUNTED, COUNTED_WITHOUT_MARK, REMOVED]), max_size=12)


def after(version: Version, deeds: list[str]) -> Version:
    for deed in deeds:
        if deed == COUNTED:
            version = version.after(new_mark())
        elif deed == REMOVED:
            version = Version(None, exists=False)
        elif version.exists:
            version = Version((version.number or 0) + 1, version.marks)
    return version


@given(st.lists(MARKS, max_size=KEPT))
def test_marks_are_read_as_they_were_written(marks):
    assert parse_marks(marks_text(marks)) == tuple(marks)


@given(st.one_of(st.none(), st.integers(), st.text(), st.from_regex(r"[\w-]{8}(\.[\w-]{8}){8,}", fullmatch=True)))
def test_what_are_no_marks_are_none(text):
    assert all(len(mark) == 8 for mark in parse_marks(text))
    assert len(parse_marks(text)) <= KEPT


def test_no_two_marks_are_the_same():
    marks = {new_mark() for _ in range(1000)}
    assert len(marks) == 1000
    assert all(parse_marks(mark) == (mark,) for mark in marks)


@given(VERSIONS, OTHERS)
def test_a_write_that_was_carried_out_is_never_said_not_to_be(seen, deeds):
    mark = new_mark()
    now = after(seen.after(mark), deeds)
    fate = fate_of(mark, seen, now)
    if REMOVED not in deeds:
        assert fate is not Fate.NOT_CARRIED_OUT
        assert (fate is Fate.CARRIED_OUT) is (deeds.count(COUNTED) < KEPT)
    elif seen.marks:
        assert fate is not Fate.NOT_CARRIED_OUT


@given(VERSIONS, OTHERS)
def test_a_write_that_was_not_carried_out_is_never_said_to_be(seen, deeds):
    now = after(seen, deeds)
    fate = fate_of(new_mark(), seen, now)
    assert fate is not Fate.CARRIED_OUT
    if now == seen:
        assert fate is Fate.UNKNOWN  # it may still come
    elif REMOVED not in deeds and COUNTED_WITHOUT_MARK not in deeds and len(deeds) < KEPT:
        assert fate is Fate.NOT_CARRIED_OUT


def test_who_writes_without_version_and_marks_leaves_nothing_to_tell_by():
    for seen in (Version(None, exists=False), Version(None), Version(0), Version(3, (new_mark(),))):
        for now in (Version(None), Version(0), Version(seen.number)):
            assert fate_of(new_mark(), seen, now) is Fate.UNKNOWN


@given(VERSIONS)
def test_an_etag_is_read_as_it_was_written(version):
    etag = etag_of(version)
    assert etag[0] == etag[-1] == '"'
    assert all(character == "!" or "#" <= character <= "~" for character in etag[1:-1])  # RFC 9110: etagc
    assert parse_if_match(etag) == version
    assert parse_if_match(f" {etag}\t") == version


@given(VERSIONS, VERSIONS)
def test_two_versions_have_two_etags(one, other):
    assert (etag_of(one) == etag_of(other)) is (one == other)


@given(st.one_of(st.none(), st.text(), st.from_regex(r'(W/)?"[!-~]*"', fullmatch=True)))
def test_any_header_is_a_version_or_a_clear_error(header):
    try:
        version = parse_if_match(header)
    except TokenInvalid as error:
        assert error.status in {400, 412, 428}
        assert error.as_http()["statusCode"] == error.status
    else:
        assert header is not None
        assert etag_of(version) == header.strip()


@pytest.mark.parametrize(
    ("header", "status", "says"),
    [
        (None, 428, "no If-Match"),
        ("*", 428, r"\*"),
        ("", 400, "one ETag"),
        ("3", 400, "quotes"),
        ('"1.Ab12Cd34", "2.Ef56Gh78"', 400, "one ETag"),
        ('W/"1.Ab12Cd34"', 412, "weak"),
        ('"somebody else\'s"', 400, "one ETag"),
        ('"elses"', 412, "matches nothing"),
        ('"01."', 412, "matches nothing"),
        ('"1.short"', 412, "matches nothing"),
        (7, 400, "must be a string"),
    ],
)
def test_what_is_wrong_with_a_header_is_said(header, status, says):
    with pytest.raises(TokenInvalid, match=says) as caught:
        parse_if_match(header)
    assert caught.value.status == status
