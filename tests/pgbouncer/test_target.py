"""What a URL and a secret say of a database, and that no error tells a password."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perinvoke.errors import SecretError, SettingError
from perinvoke.pgbouncer.target import Target, complete, parse_secret, parse_url

SECRET_PASSWORD = "hunter2-and-more"
words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=15)
passwords = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=100)


def database_of(url):
    return complete(parse_url(url), None)


@given(words, passwords, words)
def test_whatever_is_quoted_in_a_url_comes_out_of_it(user, password, database):
    url = f"postgresql://{quote(user, safe='')}:{quote(password, safe='')}@db.example.com:6000/{quote(database, safe='')}"
    found = database_of(url)
    assert (found.host, found.port) == ("db.example.com", 6000)
    assert (found.user, found.password, found.database) == (user, password, database)


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("postgres://u:p@h/d", "h", 5432),
        ("postgresql+psycopg://u:p@h:1/d", "h", 1),
        ("postgresql://u:p@[2001:db8::1]:99/d", "2001:db8::1", 99),
        ("postgresql://u@/d?host=/var/run/postgresql&port=5433", "/var/run/postgresql", 5433),
        ("postgresql://u:p@h/d?sslmode=verify-ca", "h", 5432),
    ],
)
def test_the_forms_of_a_url(url, host, port):
    found = database_of(url)
    assert (found.host, found.port, found.user, found.database) == (host, port, "u", "d")


@pytest.mark.parametrize(
    "url",
    [
        SECRET_PASSWORD,
        f"mysql://u:{SECRET_PASSWORD}@h/d",
        f"postgresql://u:{SECRET_PASSWORD}@h:port/d",
        f"postgresql://u:{SECRET_PASSWORD}@h:70000/d",
        f"postgresql://u:{SECRET_PASSWORD}@[h/d",
        f"postgresql://u:{SECRET_PASSWORD}/@h/d",
        f"postgresql://u:{SECRET_PASSWORD}#@h/d",
        f"postgresql://u:{SECRET_PASSWORD}%ff@h/d",
        f"postgresql://u:{SECRET_PASSWORD}@h/d\n",
        f"postgresql://u:{SECRET_PASSWORD}@h/d?port=x",
        f"postgresql://u:{SECRET_PASSWORD}@h/d?sslmode",
        f"postgresql:u:{SECRET_PASSWORD}@h/d",
        f" postgresql://u:{SECRET_PASSWORD}@h/d",
    ],
)
def test_a_url_that_is_none_is_an_error_that_tells_the_form_and_not_the_password(url):
    with pytest.raises(SettingError, match="PERINVOKE_PGBOUNCER_URL is .*; allowed is postgresql://USER") as caught:
        database_of(url)
    assert SECRET_PASSWORD not in f"{caught.value}{caught.value.__dict__}{caught.value.__cause__}"


@pytest.mark.parametrize(
    ("url", "told"),
    [
        (f"postgresql://:{SECRET_PASSWORD}@h/d", "has no user"),
        (f"postgresql://u:{SECRET_PASSWORD}@/d", "has no host"),
        (f"postgresql://u:{SECRET_PASSWORD}@h", "has no database"),
        (
            f"postgresql://u:{SECRET_PASSWORD}@h/d?sslmode=always",
            "sslmode in PERINVOKE_PGBOUNCER_URL is 'always'; allowed is one of disable",
        ),
        (
            f"postgresql://u:{SECRET_PASSWORD}@h/d?options=-csearch_path%3Dx",
            "has the parameter options, which PgBouncer would not",
        ),
        (f"postgresql://u:{SECRET_PASSWORD}@h1,h2/d", "the database's host 'h1,h2' can't be given to PgBouncer: it is a list"),
        (
            f"postgresql://u:{SECRET_PASSWORD}@h/d%0Ax",
            "the database's database 'd.nx' can't be given to PgBouncer: it has a control",
        ),
        (f"postgresql://{'u' * 64}:{SECRET_PASSWORD}@h/d", "has more than 63 bytes"),
        (f"postgresql://u:{SECRET_PASSWORD}%00@h/d", "the database's password can't be given to PgBouncer: it has a NUL"),
        (f"postgresql://u:{SECRET_PASSWORD * 200}@h/d", "has more than 1900 bytes"),
        (f"postgresql://u:md5{'0' * 32}@h/d", "looks like a hash"),
        (f"postgresql://u:SCRAM-SHA-256${SECRET_PASSWORD}@h/d", "looks like a hash"),
    ],
)
def test_what_pgbouncer_cannot_do_is_an_error(url, told):
    with pytest.raises(SettingError, match=told) as caught:
        database_of(url)
    assert SECRET_PASSWORD not in f"{caught.value}{caught.value.__dict__}"


@given(st.text(max_size=60))
def test_any_text_is_either_a_url_or_an_error(text):
    try:
        database_of(text)
    except SettingError:
        pass


def rds(**changes):
    fields = {"username": "u", "password": "p", "host": "h", "port": 5433, "dbname": "d", "engine": "postgres"}
    return {name: value for name, value in {**fields, **changes}.items() if value is not None}


def test_a_secret_alone_says_all():
    found = complete(None, parse_secret("s", rds()), "s")
    assert (found.host, found.port, found.database, found.user, found.password) == ("h", 5433, "d", "u", "p")


def test_a_secret_with_nothing_but_who_is_completed_by_a_url():
    secret = parse_secret("s", {"username": "u", "password": "p"})  # as RDS keeps it for a master user
    found = complete(parse_url("postgresql://db.example.com:7000/orders"), secret, "s")
    assert (found.host, found.port, found.database, found.user, found.password) == ("db.example.com", 7000, "orders", "u", "p")


def test_where_a_url_says_wins_over_the_secret():
    found = complete(parse_url("postgresql://proxy/"), parse_secret("s", rds(port="5433")), "s")
    assert (found.host, found.port, found.database) == ("proxy", 5433, "d")


@pytest.mark.parametrize("url", ["postgresql://u@h/d", f"postgresql://:{SECRET_PASSWORD}@h/d"])
def test_who_is_said_once(url):
    with pytest.raises(SettingError, match="give one of them") as caught:
        complete(parse_url(url), parse_secret("s", rds()), "s")
    assert SECRET_PASSWORD not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "field", "told"),
    [
        ({"username": None}, "username", "is missing"),
        ({"password": None}, "password", "is missing"),
        ({"host": None}, "host", "is missing"),
        ({"dbname": None}, "dbname", "is missing"),
        ({"username": ""}, "username", "is no text, or empty"),
        ({"password": 12345678}, "password", "is no text, or empty"),
        ({"port": SECRET_PASSWORD}, "port", "is no port"),
        ({"port": True}, "port", "is no port"),
        ({"port": 0}, "port", "is no port"),
        ({"engine": "mysql"}, "engine", "is of another kind of database"),
        ({"engine": 1}, "engine", "is of another kind of database"),
    ],
)
def test_a_bad_field_of_a_secret_is_named_and_not_told(changes, field, told):
    with pytest.raises(SecretError, match=f"the field '{field}' of the secret my-secret {told}") as caught:
        complete(None, parse_secret("my-secret", rds(**changes)), "my-secret")
    assert (caught.value.secret, caught.value.field) == ("my-secret", field)
    assert not {SECRET_PASSWORD, "12345678"} & set(str(caught.value).split())


def test_no_repr_tells_a_password():
    target = parse_url(f"postgresql://u:{SECRET_PASSWORD}@h/d")
    assert SECRET_PASSWORD not in f"{target!r}{complete(target, None)!r}{Target(password=SECRET_PASSWORD)}"


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        *(("localhost", True), ("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("/tmp", True), ("@abstract", True)),
        *(("127.0.0.1.example.com", False), ("127.example.com", False), ("10.0.0.1", False), ("localhost.example.com", False)),
    ],
)
def test_what_never_leaves_the_machine(host, is_local):
    assert complete(Target(host=host, database="d", user="u"), None).is_local is is_local
