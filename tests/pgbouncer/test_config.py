from __future__ import annotations

import pytest

from perinvoke.errors import PerinvokeError, PgBouncerError, SettingError
from perinvoke.pgbouncer.config import read_config, tls_mode_for
from perinvoke.pgbouncer.target import Target, complete

URL = {"PERINVOKE_PGBOUNCER_URL": "postgresql://u:hunter2hunter2@db.example.com/d"}


def test_the_defaults():
    config = read_config(URL)
    assert (config.name, config.max_connections, config.pool_mode, config.resets) == ("default", 4, "transaction", True)
    assert (config.idle_seconds, config.wait_seconds, config.tls_mode, config.path) == (60, 10, None, None)
    assert "hunter2" not in repr(config)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("MAX_CONNECTIONS", "0", "a whole number of connections from 1"),
        ("MAX_CONNECTIONS", "1001", "a whole number of connections from 1 to 1000"),
        ("MAX_CONNECTIONS", "many", "a whole number of connections from 1"),
        ("POOL_MODE", "statement", "one of transaction, session"),
        ("POOL_MODE", "", "one of transaction, session"),
        ("RESET", "off", "one of always, never"),
        ("TLS_MODE", "on", "one of disable, prefer, require, verify-ca, verify-full"),
        ("TLS_CA_FILE", "ca.pem", "an absolute path"),
        ("PATH", "pgbouncer", "an absolute path"),
        ("IDLE_SECONDS", "-1", "a whole number of seconds from 1"),
        ("WAIT_SECONDS", "86401", "a whole number of seconds from 1 to 86400"),
    ],
)
def test_a_bad_value_is_an_error_that_names_the_variable_the_value_and_what_is_allowed(name, value, allowed):
    variable = f"PERINVOKE_PGBOUNCER_{name}"
    with pytest.raises(SettingError) as caught:
        read_config({**URL, variable: value})
    assert f"{variable} is {value!r}; allowed is {allowed}" in str(caught.value)


@pytest.mark.parametrize("name", ["", "a/b", "..", "pgbouncer", "x" * 49, "ü", "a b"])
def test_a_name_that_is_none(name):
    with pytest.raises(PgBouncerError, match="a PgBouncer can't be named"):
        read_config({**URL, "PERINVOKE_PGBOUNCER_NAME": name})


@pytest.mark.parametrize("variables", [{}, {"PERINVOKE_PGBOUNCER_URL": ""}])
def test_a_database_must_be_named(variables):
    with pytest.raises(SettingError, match="PERINVOKE_PGBOUNCER_URL is not set, and neither is PERINVOKE_PGBOUNCER_SECRET"):
        read_config(variables)


def test_the_urls_parameters_count_unless_a_variable_says_otherwise():
    url = {"PERINVOKE_PGBOUNCER_URL": "postgresql://u:p@h/d?sslmode=require&sslrootcert=/ca.pem"}
    config = read_config(url)
    assert (config.tls_mode, config.tls_ca_file) == ("require", "/ca.pem")
    assert read_config({**url, "PERINVOKE_PGBOUNCER_TLS_MODE": "require"}).tls_mode == "require"
    with pytest.raises(SettingError, match="TLS_MODE is 'disable', and sslmode in PERINVOKE_PGBOUNCER_URL is 'require'"):
        read_config({**url, "PERINVOKE_PGBOUNCER_TLS_MODE": "disable"})


def mode(host, asked=None, *, has_ca_file=False):
    return tls_mode_for(complete(Target(host=host, database="d", user="u"), None), asked, has_ca_file=has_ca_file)


def test_what_leaves_the_machine_is_encrypted_unless_somebody_says_otherwise():
    assert mode("db.example.com") == "require"
    assert mode("db.example.com", has_ca_file=True) == "verify-full"
    assert mode("db.example.com", "disable") == "disable"
    assert mode("db.example.com", "verify-ca", has_ca_file=True) == "verify-ca"
    assert mode("127.0.0.1") == "prefer"
    assert mode("127.0.0.1", "require") == "require"
    assert mode("/var/run/postgresql", "require") == "disable"


@pytest.mark.parametrize("asked", ["verify-ca", "verify-full"])
def test_a_server_cannot_be_checked_by_nothing(asked):
    with pytest.raises(PerinvokeError, match="TLS_CA_FILE doesn't say by which certificates. For RDS it is the file"):
        mode("db.example.com", asked)
