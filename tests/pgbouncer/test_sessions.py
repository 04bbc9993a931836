"""Nothing of one client's session reaches another one: two clients, over the one connection that both get."""

from __future__ import annotations

import psycopg
import pytest

# What a client leaves, how another one looks for it, and what that one finds where nothing is left.
KINDS = {
    "SET": ("SET work_mem = '77MB'", "SHOW work_mem", "4MB"),
    "SET of a setting of its own": ("SET app.name = 'ann'", "SELECT coalesce(current_setting('app.name', true), '')", ""),
    "SET of what PgBouncer itself keeps for a client": ("SET timezone = 'Asia/Tokyo'", "SHOW timezone", "UTC"),
    "SET search_path": ("SET search_path = pg_catalog", "SHOW search_path", '"$user", public'),
    "SET ROLE": ("SET ROLE pg_monitor", "SELECT current_user::text", "postgres"),
    "SET SESSION AUTHORIZATION": ("SET SESSION AUTHORIZATION pg_monitor", "SELECT session_user::text", "postgres"),
    "SET SESSION CHARACTERISTICS": (
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        "SHOW default_transaction_read_only",
        "off",
    ),
    "a temporary table": ("CREATE TEMP TABLE left_over (id int)", "SELECT to_regclass('pg_temp.left_over')::text", None),
    "an advisory lock": ("SELECT pg_advisory_lock(77)", "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'", 0),
    "LISTEN": ("LISTEN news", "SELECT count(*) FROM pg_listening_channels()", 0),
    "a cursor WITH HOLD": (
        "DECLARE left_over CURSOR WITH HOLD FOR SELECT 1",
        "SELECT count(*) FROM pg_cursors WHERE name <> ''",
        0,
    ),
}


@pytest.fixture(scope="module", autouse=True)
def _sequence(postgres):
    postgres.execute("CREATE SEQUENCE IF NOT EXISTS numbers")
    postgres.execute("CREATE TABLE IF NOT EXISTS left_over_rows (id int)")


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_client_leaves_is_gone_for_the_next(kind, shared_extension):
    leave, look, clean = KINDS[kind]
    with shared_extension.connect() as leaving, shared_extension.connect() as looking:
        backend = leaving.execute("SELECT pg_backend_pid()").fetchone()
        leaving.execute(leave)
        assert looking.execute(look).fetchone() == (clean,)
        assert looking.execute("SELECT pg_backend_pid()").fetchone() == backend


def test_the_last_value_of_a_sequence_is_gone(shared_extension):
    with shared_extension.connect() as leaving, shared_extension.connect() as looking:
        leaving.execute("SELECT nextval('numbers')")
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
            looking.execute("SELECT lastval()")


def test_an_open_transaction_ends_with_its_client(shared_extension):
    with shared_extension.connect() as leaving, shared_extension.connect() as looking:
        leaving.execute("BEGIN")
        leaving.execute("INSERT INTO left_over_rows VALUES (1)")
        leaving.close()
        assert looking.execute("SELECT count(*) FROM left_over_rows").fetchone() == (0,)
        assert looking.info.transaction_status is psycopg.pq.TransactionStatus.IDLE


def test_a_session_is_reset_though_its_statements_may_take_no_time(shared_extension):
    with shared_extension.connect() as leaving, shared_extension.connect() as looking:
        for _ in range(20):
            leaving.execute("SET statement_timeout = 1")
            assert looking.execute("SHOW statement_timeout").fetchone() == ("0",)


def test_a_session_that_cannot_be_reset_is_not_used_again(extension, postgres):
    """The user may not call what gives advisory locks back: the reset fails, and with it all that it had done before."""
    postgres.execute("CREATE DATABASE hardened")
    postgres.execute("CREATE ROLE limited LOGIN PASSWORD 'x'")
    with postgres.admin("hardened") as admin:
        admin.execute("REVOKE EXECUTE ON FUNCTION pg_advisory_unlock_all() FROM PUBLIC")
    url = postgres.url(database="hardened", user="limited", password="x")
    variables = {"PERINVOKE_PGBOUNCER_MAX_CONNECTIONS": "1", "PERINVOKE_PGBOUNCER_IDLE_SECONDS": "1"}
    with extension(url, **variables) as running, running.connect() as one, running.connect() as other:
        one.execute("SET work_mem = '77MB'")
        assert other.execute("SHOW work_mem").fetchone() == ("4MB",)  # once the other connection was idle for too long


def test_sql_level_prepared_statements_are_gone_where_pgbouncer_prepares_none_itself(shared_extension):
    if shared_extension.facts.prepared_statements:
        pytest.skip("PgBouncer 1.21 and later keep prepared statements")
    with shared_extension.connect() as leaving, shared_extension.connect() as looking:
        leaving.execute("PREPARE left_over AS SELECT 1")
        assert looking.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)


def test_prepared_statements_of_drivers_work_where_the_version_can(shared_extension):
    if not shared_extension.facts.prepared_statements:
        pytest.skip("PgBouncer older than 1.21 can't")
    with shared_extension.connect() as one, shared_extension.connect() as other:
        for _ in range(3):
            assert one.execute("SELECT %s::int + 1", (1,)).fetchone() == (2,)
            assert other.execute("SELECT %s::int + 2", (1,)).fetchone() == (3,)


def test_without_a_reset_sessions_are_shared_as_they_are(extension, postgres):
    variables = {"PERINVOKE_PGBOUNCER_MAX_CONNECTIONS": "1", "PERINVOKE_PGBOUNCER_RESET": "never"}
    with extension(postgres.url(), **variables) as running, running.connect() as leaving, running.connect() as looking:
        assert not running.facts.resets
        leaving.execute("SET work_mem = '77MB'")
        assert looking.execute("SHOW work_mem").fetchone() == ("77MB",)


def test_in_session_mode_a_session_is_a_clients_own_until_it_leaves(extension, postgres):
    variables = {"PERINVOKE_PGBOUNCER_MAX_CONNECTIONS": "1", "PERINVOKE_PGBOUNCER_POOL_MODE": "session"}
    with extension(postgres.url(), **variables) as running:
        assert running.facts.pool_mode == "session"
        with running.connect() as leaving:
            leaving.execute("SET work_mem = '77MB'")
            leaving.execute("PREPARE left_over AS SELECT 1")
            assert leaving.execute("SHOW work_mem").fetchone() == ("77MB",)
        with running.connect() as looking:
            assert looking.execute("SHOW work_mem").fetchone() == ("4MB",)
