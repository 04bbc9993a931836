from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perinvoke.environment import lock_table
from perinvoke.environment.generation import Moment, generations, new_name, parse, remove_unused, use


class User:
    def __init__(self, name: str) -> None:
        self.key = name

    def has_ended(self) -> bool:
        return False

    def at_end(self, give_back: Any) -> None:
        pass

    def end(self) -> None:
        lock_table.give_back_all(self.key)


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    return tmp_path


def made(entry: Path, sequence: int = 1) -> Path:
    path = entry / new_name(sequence, Moment.now(), 3, "0")
    path.mkdir()
    return path


def take(path: str) -> bool:
    os.rename(path, path + ".taken")
    return True


@given(
    sequence=st.integers(0, 10**9),
    wall=st.integers(0, 2**63),
    boot=st.integers(0, 2**63),
    size=st.integers(0, 2**50),
    tag=st.sampled_from(["0", "deadbeef"]),
)
def test_a_name_tells_all_that_was_put_in_it(sequence, wall, boot, size, tag):
    found = parse("/e", new_name(sequence, Moment(wall, boot), size, tag))
    assert found is not None
    assert (found.sequence, found.built.wall_ns, found.built.boot_ns, found.size, found.tag) == (sequence, wall, boot, size, tag)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "lock",
        "building-1a2b",
        "1-2-3-4-5",
        "1-2-3-4-5-6-7",
        "x-1-1-1-0-a",
        "1-zz-1-1-0-a",
        "1-1-1-1-0-a.b",
        "\N{FULLWIDTH DIGIT ONE}-1-1-1-0-a",
    ],
)
def test_anything_else_is_no_generation(name):
    assert parse("/e", name) is None


def test_no_name_is_given_twice():
    moment = Moment(1, 1)
    assert len({new_name(1, moment, 1, "0") for _ in range(1000)}) == 1000


def test_the_highest_sequence_is_the_current_one(entry):
    for sequence in (2, 10, 1):
        made(entry, sequence)
    (entry / "lock").touch()
    assert [generation.sequence for generation in generations(str(entry))] == [1, 2, 10]
    assert generations(str(entry / "missing")) == []


def test_the_longer_of_two_clocks_tells_the_age():
    earlier = Moment(wall_ns=10**9, boot_ns=10**9)
    assert Moment(wall_ns=0, boot_ns=3 * 10**9).seconds_since(earlier) == 2
    assert Moment(wall_ns=6 * 10**9, boot_ns=3 * 10**9).seconds_since(earlier) == 5


def test_what_is_in_use_is_not_removed_and_then_it_is(entry):
    path = made(entry)
    (generation,) = generations(str(entry))
    first, second = User("first"), User("second")
    assert use(str(path), first)
    assert use(str(path), second)
    assert use(str(path), second)
    assert not remove_unused(generation, take)
    first.end()
    assert not remove_unused(generation, take)
    second.end()
    assert remove_unused(generation, take)
    assert not remove_unused(generation, take)
    assert not use(str(path), first)


def test_a_forked_child_is_no_user(entry):
    path = made(entry)
    user = User("parent")
    assert use(str(path), user)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(reader, 1)
        os._exit(0)
    user.end()
    (generation,) = generations(str(entry))
    assert remove_unused(generation, take)
    os.write(writer, b".")
    os.waitpid(pid, 0)
    os.close(reader)
    os.close(writer)


def test_users_and_removers_at_the_same_time_never_have_one_at_once(entry, tmp_path_factory):  # noqa: C901
    """A user who was told True finds the directory there, however many try to remove it."""
    taken = tmp_path_factory.mktemp("taken")
    stop = threading.Event()
    wrong: list[str] = []

    def take_away(path: str) -> bool:
        os.rename(path, taken / Path(path).name)
        return True

    def remove() -> None:
        while not stop.is_set():
            for generation in generations(str(entry)):
                if remove_unused(generation, take_away):
                    made(entry)

    def work(number: int) -> None:
        user = User(f"user {number}")
        for generation in (generation for _ in range(300) for generation in generations(str(entry))):
            if use(generation.path, user):
                wrong.extend([] if Path(generation.path).is_dir() else [generation.path])
                user.end()

    made(entry)
    removers = [threading.Thread(target=remove, daemon=True) for _ in range(2)]
    users = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in removers + users:
        thread.start()
    for thread in users:
        thread.join()
    stop.set()
    removers[0].join()
    removers[1].join()
    assert wrong == []
    assert len(list(taken.iterdir())) > 10
