"""One row for many who want it at once, on real PostgreSQL, MariaDB and SQLite."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from awslambdaric.lambda_context import LambdaContext
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, scoped_session, sessionmaker

import perinvoke
from perinvoke.fleet.sql import Conflict, RowLocked, SqlUseError, WriteConflict, conflict_of, create_or_get, retry_conflicts
from sql_conflict_models import Album, Booking, Counter, Dog, Member, Page, Team, Track, add_all, conflict_tables
from sql_lock_servers import ALL, MARIADB, POSTGRESQL, SQLITE
from stalls import repeated_after_a_stall

RACERS = 8
LEVELS = {
    POSTGRESQL: ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"],
    MARIADB: ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"],
    SQLITE: ["SERIALIZABLE"],
}


@pytest.fixture(params=ALL)
def which(request):
    return request.param


def only(*names: str):
    return pytest.mark.parametrize("which", names, indirect=True)


@pytest.fixture
def engine(which, request):
    with conflict_tables(which, request) as engine:
        yield engine


def count(engine: sa.Engine, model: type = Member) -> Any:
    with Session(engine) as session:
        return session.scalar(sa.select(sa.func.count()).select_from(model))


def test_it_makes_a_row_and_then_finds_it(engine):
    for created in (True, False):
        with Session(engine) as session, session.begin():
            member, made = create_or_get(session, Member, {"plan": "paid", "nick": "ann"}, email="a@b.c")
            assert made is created
            assert (member.email, member.plan, member.nick) == ("a@b.c", "paid", "ann")
    assert count(engine) == 1


def test_an_existing_row_keeps_what_it_has(engine):
    add_all(engine, Member(email="a", plan="old"))
    with Session(engine) as session:
        assert create_or_get(session, Member, {"plan": "new"}, email="a")[0].plan == "old"


def test_what_the_session_knows_or_has_pending_is_found_too(engine):
    with Session(engine) as session:
        mine = Member(email="a")
        session.add(mine)
        assert create_or_get(session, Member, email="a") == (mine, False)
        counter = Counter(id=7)
        session.add(counter)
        session.flush()
        assert create_or_get(session, Counter, id=7) == (counter, False)
        session.expire(counter)
        assert create_or_get(session, Counter, {"value": 1}, id=7) == (counter, False)


def test_what_is_pending_counts_as_it_will_be(engine):
    add_all(engine, Counter(id=7, value=1))
    with Session(engine) as session, session.begin():
        session.delete(session.get_one(Counter, 7))
        counter, made = create_or_get(session, Counter, id=7)
        assert (counter.value, made) == (0, True)
        mine = Counter(id=8)
        session.add(mine)
        assert create_or_get(session, Counter, id=8) == (mine, False)
    assert count(engine, Counter) == 2


def test_a_model_whose_collections_are_joined(engine):
    add_all(engine, Album(id=1, title="Blue", tracks=[Track(id=1), Track(id=2)]))
    for key, defaults in (({"id": 1}, {"title": "Red"}), ({"title": "Blue"}, {"id": 2})):
        with Session(engine) as session:
            album, made = create_or_get(session, Album, defaults, **key)
            assert (len(album.tracks), made) == (2, False)


def test_keys_of_several_columns_and_those_under_another_name_in_the_table(engine):
    with Session(engine) as session:
        first, made = create_or_get(session, Booking, {"day": "Mon", "place": "here"}, hall="A", seat=1)
        assert made
        assert create_or_get(session, Booking, hall="A", seat=1) == (first, False)
        assert create_or_get(session, Booking, {"hall": "B", "seat": 2}, day="Mon", place="here") == (first, False)
        assert create_or_get(session, Booking, {"hall": "B", "seat": 2}, day="Tue", place="here")[1]


def test_models_that_inherit_and_those_with_versions(engine):
    with Session(engine) as session:
        dog, made = create_or_get(session, Dog, {"tricks": 3}, id=1)
        assert made
        session.commit()
        session.expunge_all()
        again, made = create_or_get(session, Dog, id=1)
        assert (again.tricks, made, again is dog) == (3, False, False)
        assert create_or_get(session, Page, id=1)[0].etag == '"1"'


def test_related_objects_are_not_left_with_what_was_not_made(engine):
    with Session(engine) as session, session.begin():
        team = Team(id=1)
        session.add(team)
        made = [create_or_get(session, Member, {"team": team}, email="a")[1] for _ in range(3)]
        assert made == [True, False, False]
        assert len(team.members) == 1
    assert count(engine) == 1


def test_a_scoped_session_will_do(engine):
    sessions = scoped_session(sessionmaker(engine))
    assert create_or_get(sessions, Member, email="a")[1]
    sessions.rollback()
    assert count(engine) == 0
    sessions.remove()


def test_other_violations_pass_unchanged_and_the_transaction_goes_on(engine, which):
    if which == SQLITE:
        sa.event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA foreign_keys = ON"))
        engine.dispose()
    add_all(engine, Member(email="a", nick="ann"))
    with Session(engine) as session:
        session.add(Team(id=5))
        for defaults in ({"nick": "ann"}, {"team_id": 99}):
            with pytest.raises(IntegrityError):
                create_or_get(session, Member, defaults, email="new")
        with pytest.raises(IntegrityError):
            create_or_get(session, Booking, hall="A", seat=1)  # without a day
        assert create_or_get(session, Member, {"nick": "ann"}, email="a")[1] is False
        session.commit()
    assert (count(engine), count(engine, Team)) == (1, 1)


def test_errors_of_what_was_pending_are_its_own(engine):
    add_all(engine, Member(email="a"))
    with Session(engine) as session:
        session.add(Member(email="a"))
        with pytest.raises(IntegrityError):
            create_or_get(session, Member, email="b")
        session.rollback()
        assert create_or_get(session, Member, email="b")[1]


# --- races -----------------------------------------------------------------------------------------------------------------


def test_of_many_one_makes_the_row_at_every_isolation_level(engine, which):
    def race(level: str, email: str, together: threading.Barrier) -> bool:
        meet = iter([lambda: together.wait(10)])

        def function(session: Session) -> bool:
            if which != SQLITE:  # there, one transaction begins when another one has ended
                session.scalar(sa.select(sa.func.count()).select_from(Team))  # its snapshot, where it has one
                next(meet, lambda: None)()
            return create_or_get(session, Member, email=email)[1]

        return retry_conflicts(function, engine=engine, isolation=level)

    for level in LEVELS[which]:
        with ThreadPoolExecutor(RACERS) as pool:
            for number in range(4):
                together = threading.Barrier(RACERS)
                racers = [pool.submit(race, level, f"{level} {number}", together) for _ in range(RACERS)]
                assert [racer.result(20) for racer in racers].count(True) == 1
    assert count(engine) == 4 * len(LEVELS[which])


@only(POSTGRESQL, MARIADB)
def test_it_waits_for_a_winner_that_has_not_committed_yet(engine):
    with Session(engine) as winner, Session(engine) as session:
        create_or_get(winner, Member, {"plan": "theirs"}, email="a")
        timer = threading.Timer(0.3, winner.commit)
        timer.start()
        member, made = create_or_get(session, Member, email="a")
        assert (member.plan, made) == ("theirs", False)
        session.rollback()
        timer.join()


@pytest.mark.parametrize("inside", [True, False])
def test_if_the_winner_is_rolled_back_another_one_makes_the_row(engine, which, inside):
    def racer(_: int) -> object:
        if inside:
            return retry_conflicts(lambda session: create_or_get(session, Member, email="a")[1], engine=engine)
        try:
            with Session(engine) as session, session.begin():
                return create_or_get(session, Member, email="a")[1]
        except sa.exc.OperationalError as error:
            return conflict_of(error)

    with Session(engine) as winner, ThreadPoolExecutor(3) as pool:
        create_or_get(winner, Member, email="a")
        racers = pool.map(racer, range(3))
        time.sleep(0.3)
        winner.rollback()
        made = list(racers)
    assert made.count(True) == 1
    assert set(made) <= ({True, False, Conflict.DEADLOCK} if which == MARIADB and not inside else {True, False})
    assert count(engine) == 1


@only(POSTGRESQL)
def test_a_winner_that_a_snapshot_cannot_see_is_a_conflict(engine):
    with Session(engine.execution_options(isolation_level="REPEATABLE READ")) as session:
        assert session.scalars(sa.select(Member)).all() == []
        add_all(engine, Member(email="a"))
        with pytest.raises(WriteConflict, match="after this transaction began to look.*retry_conflicts") as caught:
            create_or_get(session, Member, email="a")
        assert (caught.value.table, caught.value.key) == ("conflict_member", "a")
        assert isinstance(caught.value.__cause__, IntegrityError)


@only(MARIADB)
def test_in_mariadb_the_row_is_read_past_the_snapshot(engine):
    with Session(engine) as session:
        assert session.scalars(sa.select(Member)).all() == []
        add_all(engine, Member(email="a", plan="theirs"))
        member, made = create_or_get(session, Member, email="a")
        assert (member.plan, made) == ("theirs", False)


@repeated_after_a_stall
def test_a_winner_that_neither_commits_nor_rolls_back_is_waited_for_until_the_deadline(engine, which, root):
    @perinvoke.isolated
    def handler(event: object, context: object) -> float:
        with Session(engine) as session, pytest.raises(RowLocked, match="Member 'a' couldn't be locked") as caught:
            create_or_get(session, Member, email="a")
        assert (caught.value.what, caught.value.key) == ("Member", "a")
        return perinvoke.current().deadline.remaining_seconds()

    with Session(engine) as winner:
        create_or_get(winner, Member, email="a")
        # MariaDB counts whole seconds, and one at least.
        seconds = 2.5 if which == MARIADB else 1.0
        assert handler({}, LambdaContext("1", None, None, int((time.time() + seconds) * 1000), "arn")) > 0
        winner.rollback()


@only(SQLITE)
def test_in_sqlite_nothing_is_committed_by_the_savepoint(engine):
    with Session(engine) as session:
        create_or_get(session, Member, email="a")
        session.rollback()
    assert count(engine) == 0


# --- what can't work -------------------------------------------------------------------------------------------------------


@only(SQLITE)
def test_keys_that_are_not_unique_by_the_models_word_are_refused_with_those_that_are(engine):
    with Session(engine) as session:
        for key in ({"plan": "free"}, {"email": "a", "nick": "b"}, {}, {"born": 1}):
            with pytest.raises(SqlUseError, match="nothing in the model says that of .*Unique are: email; id; nick"):
                create_or_get(session, Member, **key)
        with pytest.raises(SqlUseError, match="Unique are: day, place; hall, seat"):
            create_or_get(session, Booking, hall="A")
        for name in ("team", "mail"):
            with pytest.raises(SqlUseError, match=f"{name} of Member is no column"):
                create_or_get(session, Member, None, **{name: 1})
        with pytest.raises(SqlUseError, match="nick of Member is None"):
            create_or_get(session, Member, {"email": "a"}, nick=None)
        with pytest.raises(SqlUseError, match="email of Member is in the key and in defaults"):
            create_or_get(session, Member, {"email": "a"}, email="a")
        with pytest.raises(TypeError, match="'colour' is an invalid keyword argument"):
            create_or_get(session, Member, {"colour": "red"}, email="a")
        for model in (int, "Member", Member(email="a")):
            with pytest.raises(SqlUseError, match="takes a mapped class"):
                create_or_get(session, model, email="a")  # type: ignore[arg-type]  # on purpose


def test_sessions_that_hold_no_transaction_are_refused(engine):
    with (
        Session(engine.execution_options(isolation_level="AUTOCOMMIT")) as session,
        pytest.raises(SqlUseError, match="AUTOCOMMIT|autocommit"),
    ):
        create_or_get(session, Member, email="a")
    with pytest.raises(SqlUseError, match="takes a Session, not Engine"):
        create_or_get(engine, Member, email="a")


@only(POSTGRESQL)
@pytest.mark.parametrize("driver", ["psycopg2", "pg8000"])
def test_other_drivers_tell_the_constraint_too(engine, driver, postgres):
    add_all(engine, Member(email="a", nick="ann"))
    other = sa.create_engine(postgres.url(driver))
    with Session(other) as session:
        assert create_or_get(session, Member, email="a")[1] is False
        with pytest.raises(IntegrityError):
            create_or_get(session, Member, {"nick": "ann"}, email="b")
        assert create_or_get(session, Member, email="b")[1] is True
    other.dispose()
