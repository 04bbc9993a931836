from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from perinvoke.environment.connections import drivers
from perinvoke.environment.connections.server_side import has_session_reset, prepare, reset_session, time_outs


@pytest.mark.parametrize(
    ("dialect", "statement", "lock", "told"),
    [
        ("postgresql", 1.5, None, ["SET statement_timeout = 1500"]),
        ("postgresql", math.inf, 0.0001, ["SET statement_timeout = 0", "SET lock_timeout = 1"]),
        ("postgresql", 0.0, None, ["SET statement_timeout = 1"]),
        ("mariadb", 1.5, 2.9, ["SET SESSION max_statement_time = 1.500", "SET SESSION innodb_lock_wait_timeout = 2"]),
        ("mariadb", math.inf, 0.1, ["SET SESSION max_statement_time = 0.000", "SET SESSION innodb_lock_wait_timeout = 1"]),
        ("mysql", 1.5, None, ["SET SESSION max_execution_time = 1500"]),
        ("sqlite", 1.0, 1.0, []),
    ],
)
def test_time_outs_in_each_database_words(dialect, statement, lock, told):
    assert time_outs(dialect, statement_seconds=statement, lock_seconds=lock) == told


def test_behind_a_pooler_they_hold_for_a_transaction():
    assert time_outs("postgresql", statement_seconds=1, lock_seconds=1, local=True) == [
        "SET LOCAL statement_timeout = 1000",
        "SET LOCAL lock_timeout = 1000",
    ]


def test_not_every_database_can_reset_a_session():
    assert [has_session_reset(name) for name in ("postgresql", "mysql", "mariadb", "sqlite")] == [True, True, True, False]


@pytest.mark.parametrize(("database", "chosen"), [("shop", ["shop"]), ("", [])])
def test_mysql_connector_is_reset_to_the_database_that_it_was_connected_to(database, chosen):
    found: list[str] = []
    connection = SimpleNamespace(_database=database, cmd_reset_connection=lambda: True, cmd_init_db=found.append)
    reset_session(SimpleNamespace(name="mysql"), connection)
    assert found == chosen


def test_mysql_connector_which_was_not_reset_is_not_taken_for_clean():
    connection = SimpleNamespace(_database="", cmd_reset_connection=lambda: False)
    with pytest.raises(NotImplementedError, match="COM_RESET_CONNECTION"):
        reset_session(SimpleNamespace(name="mysql"), connection)


def test_a_driver_of_postgresql_that_knows_only_db_api_is_not_set_up_and_not_reset():
    dialect = SimpleNamespace(name="postgresql", server_version_info=(18,), loaded_dbapi=SimpleNamespace(Error=OSError))
    connection = object()
    prepare(dialect, connection)
    with pytest.raises(NotImplementedError, match="has no autocommit"):
        reset_session(dialect, connection)


@pytest.mark.parametrize(
    ("driver", "own", "seconds", "bounded"),
    [
        ("postgresql+psycopg", {}, 7.9, {"connect_timeout": 7}),
        ("postgresql+psycopg", {}, 0.3, {"connect_timeout": 2}),
        ("postgresql+psycopg2", {"connect_timeout": "3"}, 7.9, {"connect_timeout": 3}),
        ("postgresql+psycopg", {"connect_timeout": 30}, 7.9, {"connect_timeout": 7}),
        ("postgresql+psycopg", {"connect_timeout": 0}, 7.9, {"connect_timeout": 7}),
        ("mysql+pymysql", {"host": "h"}, 0.3, {"host": "h", "connect_timeout": 1}),
        ("mysql+mysqlconnector", {}, 5.0, {"connection_timeout": 5}),
        ("mariadb+mariadbconnector", {}, 5.0, {"connect_timeout": 5}),
        ("postgresql+pg8000", {}, 5.0, {}),
        ("sqlite+pysqlite", {"timeout": 1}, 5.0, {"timeout": 1}),
        ("postgresql+psycopg", {}, math.inf, {}),
    ],
)
def test_connecting_is_bounded_as_nearly_as_the_driver_can_count(driver, own, seconds, bounded):
    assert drivers.bounded(driver, own, seconds) == bounded
