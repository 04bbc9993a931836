"""Rows that know how often they were changed, on real PostgreSQL, MariaDB and SQLite."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    Session,
    declarative_base,
    declared_attr,
    mapped_column,
    registry,
    scoped_session,
    sessionmaker,
)
from sqlalchemy.orm.exc import StaleDataError

from perinvoke.fleet.sql import SqlUseError, TokenInvalid, Versioned, WriteConflict, retry_conflicts, stale_as_conflict
from sql_conflict_models import Counter, Dog, Page, Pet, Renamed, add_all, conflict_tables
from sql_lock_servers import ALL, SQLITE


@pytest.fixture(params=ALL)
def which(request):
    return request.param


def only(*names: str):
    return pytest.mark.parametrize("which", names, indirect=True)


@pytest.fixture
def engine(which, request):
    with conflict_tables(which, request) as engine:
        add_all(engine, Page(id=1), Page(id=2), Dog(id=1, name="Rex"), Renamed(id=1))
        yield engine


def change(engine: sa.Engine, model: Any = Page, key: int = 1, **values: object) -> None:
    """Somebody else does."""
    with Session(engine) as session, session.begin():
        obj = session.get_one(model, key)
        for name, value in values.items():
            setattr(obj, name, value)


# --- versions --------------------------------------------------------------------------------------------------------------


def test_a_version_begins_at_one_and_counts_changes(engine):
    with Session(engine) as session:
        page = session.get_one(Page, 1)
        assert (page.lock_version, page.etag) == (1, '"1"')
        page.text = "a"
        assert page.etag == '"1"'
        session.commit()
        assert page.etag == '"2"'
        page.text = str(page.text)
        session.commit()
        assert page.etag == '"2"', "nothing was changed"


def test_a_row_that_was_inserted_past_the_session_has_version_one(engine):
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO conflict_page (id, text) VALUES (9, 'x')")
    with Session(engine) as session:
        assert session.get_one(Page, 9).etag == '"1"'


def test_a_change_in_any_table_of_a_model_that_inherits_counts(engine):
    with Session(engine) as session:
        dog = session.get_one(Dog, 1)
        dog.tricks = 1
        session.commit()
        assert dog.etag == '"2"'
        dog.name = "Bello"
        session.commit()
        assert session.get_one(Pet, 1).etag == '"3"'
        change(engine, Pet, name="Hasso")
        dog.tricks = 2
        with pytest.raises(WriteConflict) as caught, stale_as_conflict(session):
            session.commit()
        assert (caught.value.table, caught.value.key) == ("conflict_pet", 1)


def test_a_column_of_the_models_own_is_the_one_that_counts(engine):
    assert Renamed.__mapper__.version_id_col is Renamed.__table__.c.revision
    with Session(engine) as session:
        assert session.get_one(Renamed, 1).etag == '"1"'


def test_whoever_changes_or_deletes_what_has_been_changed_writes_nothing(engine, which):
    for does in (lambda session, page: setattr(page, "text", "us"), lambda session, page: session.delete(page)):
        with Session(engine) as session:
            page = session.get_one(Page, 1)
            _ = page.text
            session.commit() if which == SQLITE else None
            loaded = page.lock_version
            change_past(engine)
            does(session, page)
            with (
                pytest.raises(WriteConflict, match="conflict_page 1 was changed or deleted by somebody else") as caught,
                stale_as_conflict(session),
            ):
                session.commit()
            assert isinstance(caught.value.__cause__, StaleDataError)
            assert (caught.value.table, caught.value.key, caught.value.attempts) == ("conflict_page", 1, 1)
            assert caught.value.as_http()["statusCode"] == 409
            assert pickle.loads(pickle.dumps(caught.value)).key == 1
            session.rollback()
            assert page.lock_version == loaded + 1


def change_past(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE conflict_page SET lock_version = lock_version + 1 WHERE id = 1")


def test_a_flush_that_meets_one_stale_row_among_several_names_all_it_may_be(engine):
    with Session(engine, expire_on_commit=False) as session:
        pages = session.scalars(sa.select(Page).order_by(Page.id)).all()
        session.commit()
        change(engine, text="them")
        for page in pages:
            page.text = "us"
        with pytest.raises(WriteConflict) as caught, stale_as_conflict(session):
            session.flush()
        assert sorted(caught.value.key) == [1, 2]  # type: ignore[call-overload]  # a list here


def test_it_takes_a_scoped_session_and_leaves_no_listener_and_other_errors_alone(engine):
    sessions = scoped_session(sessionmaker(engine))
    with pytest.raises(ZeroDivisionError), stale_as_conflict(sessions):
        1 // 0  # noqa: B018  # raises
    with stale_as_conflict(sessions), sessions.session_factory() as theirs:
        assert list(theirs.dispatch.before_flush) == [], "another thread's session"
    with stale_as_conflict(sessions()):
        sessions.add(Page(id=5))
        sessions.commit()
    assert list(sessions().dispatch.before_flush) == []
    sessions.remove()


def test_updates_in_bulk_go_past_the_version_unless_they_count_it_themselves(engine):
    with Session(engine) as session:
        page = session.get_one(Page, 1)
        session.execute(sa.update(Page).values(text="all"))
        session.commit()
        assert page.etag == '"1"'
        session.execute(sa.update(Page).values(text="all", lock_version=Page.lock_version + 1))
        session.commit()
        assert page.etag == '"2"'


# --- ETags -----------------------------------------------------------------------------------------------------------------


def test_an_etag_lets_the_writer_pass_who_has_seen_the_newest_version(engine):
    with Session(engine) as session:
        page = session.get_one(Page, 1)
        page.check_etag(page.etag)
        page.check_etag(' "1" ')


def test_an_etag_of_another_version_is_a_conflict_that_is_not_repeated(engine):
    calls = []

    def write(session: Session) -> None:
        calls.append(1)
        session.get_one(Page, 1).check_etag('"1"')

    change(engine, text="them")
    with pytest.raises(WriteConflict, match="conflict_page 1 is at version 2, and the request was made for 1") as caught:
        retry_conflicts(write, engine=engine)
    assert calls == [1]
    assert (caught.value.table, caught.value.key) == ("conflict_page", 1)
    assert caught.value.as_http()["statusCode"] == 409


@only(SQLITE)
@pytest.mark.parametrize(
    ("header", "status"),
    [
        *((None, 428), ("*", 428)),
        *((1, 400), ("1", 400), ("", 400), ('"1', 400), ('"1", "2"', 400), ('"1"\n"2"', 400)),
        *(('W/"1"', 412), ('"x"', 412), ('"1.Ab12"', 412), ('""', 412), (f'"{10**30}"', 412), ('"\u0661"', 400)),
    ],
)
def test_an_if_match_that_was_never_handed_out_says_what_is_wrong(engine, header, status):
    with Session(engine) as session, pytest.raises(TokenInvalid, match="If-Match") as caught:
        session.get_one(Page, 1).check_etag(header)
    assert caught.value.as_http()["statusCode"] == status


@only(SQLITE)
def test_an_object_that_is_not_in_the_database_has_no_etag(engine):
    with pytest.raises(SqlUseError, match="this Page isn't in the database yet.*flush"):
        _ = Page(id=3).etag
    with Session(engine) as session:
        page = Page(id=3)
        session.add(page)
        with pytest.raises(SqlUseError, match="isn't in the database yet"):
            page.check_etag('"1"')
        session.flush()
        assert page.etag == '"1"'
        assert page.lock_version == 1


# --- declarations ----------------------------------------------------------------------------------------------------------


class Base(DeclarativeBase):
    __mapper_args__ = {"eager_defaults": True}  # noqa: RUF012


def test_arguments_of_the_mapper_are_kept_wherever_they_come_from():
    class Own(Versioned, Base):
        __tablename__ = "own"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "own"}  # noqa: RUF012

    class Inherited(Versioned, Base):
        __tablename__ = "inherited"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Computed(Versioned, Base):
        __tablename__ = "computed"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]

        @declared_attr.directive
        def __mapper_args__(cls):  # noqa: N805  # a class's method
            return {"polymorphic_identity": cls.__name__, **({"polymorphic_on": "kind"} if cls.__name__ == "Computed" else {})}

    class Below(Computed):
        pass

    assert Own.__mapper__.polymorphic_identity == "own"
    assert Inherited.__mapper__.eager_defaults is True
    assert Below.__mapper__.polymorphic_identity == "Below"
    models: list[Any] = [Own, Inherited, Computed, Below]
    for model in models:
        assert model.__mapper__.version_id_col is model.__table__.c.lock_version
        assert not model.__table__.c.lock_version.nullable


def test_all_ways_to_declare_a_model_get_a_version():
    class All(Versioned, DeclarativeBase):
        pass

    class OfAll(All):
        __tablename__ = "of_all"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Mixin(Versioned):
        pass

    class Mixed(Mixin, Base):
        __tablename__ = "mixed"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Old(Versioned, declarative_base()):  # type: ignore[misc]  # made by a call
        __tablename__ = "old"
        id = sa.Column(sa.Integer, primary_key=True)

    class Abstract(Versioned, Base):
        __abstract__ = True

    class Concrete(Abstract):
        __tablename__ = "concrete"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Tabled(Versioned, Base):
        __table__ = sa.Table(
            "tabled", Base.metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("lock_version", sa.Integer)
        )

    @registry().mapped
    class Decorated(Versioned):
        __tablename__ = "decorated"
        id: Mapped[int] = mapped_column(primary_key=True)

    models: list[Any] = [OfAll, Mixed, Old, Concrete, Tabled, Decorated]
    for model in models:
        assert sa.inspect(model).version_id_col is model.__table__.c.lock_version


def test_in_a_dataclass_the_version_is_no_field():
    class Data(MappedAsDataclass, DeclarativeBase):
        pass

    class Note(Versioned, Data):
        __tablename__ = "note"
        id: Mapped[int] = mapped_column(primary_key=True, init=False)
        text: Mapped[str]

    engine = sa.create_engine("sqlite://")
    Data.metadata.create_all(engine)
    with Session(engine) as session:
        note = Note(text="a")
        assert "lock_version" not in repr(note)
        session.add(note)
        session.commit()
        assert note.etag == '"1"'
    engine.dispose()


def test_declarations_that_cannot_work_say_why():
    with pytest.raises(SqlUseError, match=r"Late names Versioned after its base.*class Late\(Versioned, Base\)"):

        class Late(Base, Versioned):
            __tablename__ = "late"
            id: Mapped[int] = mapped_column(primary_key=True)

    with pytest.raises(SqlUseError, match="Twice is Versioned, and its __mapper_args__ name another version_id_col"):

        class Twice(Versioned, Base):
            __tablename__ = "twice"
            id: Mapped[int] = mapped_column(primary_key=True)
            revision: Mapped[int] = mapped_column()
            __mapper_args__ = {"version_id_col": revision}  # noqa: RUF012

    with pytest.raises(SqlUseError, match="its table bare has no column lock_version: add it"):

        class Bare(Versioned, Base):
            __table__ = sa.Table("bare", Base.metadata, sa.Column("id", sa.Integer, primary_key=True))

    with pytest.raises(SqlUseError, match="Counter has no version column"):
        Versioned.check_etag(Counter(id=1), '"1"')  # type: ignore[arg-type]  # on purpose
