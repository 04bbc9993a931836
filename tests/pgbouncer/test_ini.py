"""What is written for PgBouncer is what its parsers read. They are played here by the rules of its documentation and behaviour;
that the real ones agree is shown with a real server and a nasty password."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from perinvoke.pgbouncer.binary import Binary
from perinvoke.pgbouncer.config import read_config
from perinvoke.pgbouncer.ini import ini_text, reset_query, users_text
from perinvoke.pgbouncer.target import Database

OLD, NEW = Binary("/x", "1.18.0", (1, 18)), Binary("/x", "1.24.1", (1, 24))
CONFIG = read_config({"PERINVOKE_PGBOUNCER_URL": "postgresql://u:p@h/d", "PERINVOKE_PGBOUNCER_MAX_CONNECTIONS": "7"})
lines = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


def settings_of(text):
    """Sections of lines ``key = value``; blanks around both don't count."""
    sections: dict[str, dict[str, str]] = {}
    for line in filter(None, text.split("\n")):
        if line.startswith("["):
            section = sections.setdefault(line.strip("[]"), {})
        else:
            key, _, value = line.partition("=")
            section[key.strip()] = value.strip()
    return sections


def values_of(connection):
    """``key='value'`` after ``key='value'``, a quote doubled."""
    values = {}
    while connection:
        key, _, rest = connection.partition("='")
        value = ""
        while True:
            part, _, rest = rest.partition("'")
            value += part
            if not rest.startswith("'"):
                break
            value, rest = f"{value}'", rest[1:]
        values[key], connection = value, rest.lstrip(" ")
    return values


def users_of(text):
    """Pairs of quoted words, a quote doubled; what stands between pairs is blank."""
    words = []
    while '"' in text:
        _, _, text = text.partition('"')
        word = ""
        while True:
            part, _, text = text.partition('"')
            word += part
            if not text.startswith('"'):
                break
            word, text = f'{word}"', text[1:]
        words.append(word)
    return dict(zip(words[::2], words[1::2], strict=True))


@given(lines, lines, lines)
def test_the_database_is_read_as_it_was_written(host, database, user):
    text = ini_text(CONFIG, Database(host, 5432, database, user, "secret-password"), OLD, "prefer")
    assert "secret-password" not in text
    sections = settings_of(text)
    assert list(sections) == ["databases", "pgbouncer"]
    values = values_of(sections["databases"]["default"])
    assert values.pop("connect_query").startswith(
        "SELECT CASE WHEN pg_catalog.current_setting('client_connection_check_interval'"
    )
    assert values == {"host": host, "port": "5432", "dbname": database, "user": user}


@given(lines, texts)
def test_the_password_is_read_as_it_was_written(user, password):
    expected = {"perinvoke": "", user: password}
    assert users_of(users_text(Database("h", 1, "d", user, password))) == expected


def test_the_budget_is_the_servers_and_nothing_listens_on_tcp():
    settings = settings_of(ini_text(CONFIG, Database("h", 1, "d", "u", "p"), OLD, "require"))["pgbouncer"]
    assert settings["max_db_connections"] == settings["default_pool_size"] == "7"
    assert "listen_addr" not in settings
    assert "reserve_pool_size" not in settings
    assert settings["server_tls_sslmode"] == "require"
    assert "max_prepared_statements" not in settings


def test_from_1_21_on_prepared_statements_are_kept_and_not_reset():
    settings = settings_of(ini_text(CONFIG, Database("h", 1, "d", "u", "p"), NEW, "require"))["pgbouncer"]
    assert settings["max_prepared_statements"] == "200"
    assert "DEALLOCATE" not in settings["server_reset_query"]
    assert "DEALLOCATE ALL" in reset_query(CONFIG, OLD)
    assert "DEALLOCATE ALL" in reset_query(CONFIG._replace(pool_mode="session"), NEW)
