"""The lock, broken on purpose: one line of the package's own code is changed, and the rest runs as it is.

Each mutant is a mistake that somebody has made in such a lock, or that this one had. What it does is said beside it.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

_PACKAGE = "perinvoke.fleet.dynamodb"


@dataclass(frozen=True)
class Mutant:
    """A change of the source of one module.

    Attributes:
        name: what is wrong with it, in a few words.
        module: of the package.
        old: what stands there, exactly once.
        new: what stands there instead.
        rule: a rule that it breaks; it may break others, too.
    """

    name: str
    module: str
    old: str
    new: str
    rule: str

    def __str__(self) -> str:
        return self.name

    def simulated(self) -> SimpleNamespace:
        """``protocol`` and ``guarded`` of the broken lock, as ``simulate`` takes them."""
        changed = self._changed()
        protocol: Any = changed if self.module == "lease_protocol" else _loaded("lease_protocol", "", "")
        if self.module == "states":
            protocol.Lease = changed.Lease  # where the module has imported it to
        if self.module == "insist":
            protocol.insist = changed.insist
        fencing = changed if self.module == "fencing" else importlib.import_module(f"{_PACKAGE}.fencing")
        return SimpleNamespace(protocol=protocol, guarded=fencing.guarded)

    def _changed(self) -> Any:
        return _loaded(self.module, self.old, self.new)


def _loaded(name: str, old: str, new: str) -> Any:
    original = importlib.import_module(f"{_PACKAGE}.{name}")
    assert original.__file__ is not None
    source = Path(original.__file__).read_text()
    if old and source.count(old) != 1:
        raise AssertionError(f"{name}.py has {old!r} {source.count(old)} times, not once: give the mutant its new place")
    module = ModuleType(original.__name__)
    exec(compile(source.replace(old, new) if old else source, original.__file__, "exec"), module.__dict__)
    return module


_TWO = "no two hold at once"
_GROW = "tokens grow"
_BACK = "writes don't go back"
_BARRED = "writes of the last holder are carried out"
_NOT_ROBBED = "who is told that it was robbed was"
_ROBBED = "who was robbed is told so"
_OWN = "who holds it isn't told that others do"
STUCK = "a lease can be had in the end"

MUTANTS = (
    # Taking over
    Mutant("clocks are compared bare", "lease_protocol", " - round(self.max_skew_seconds * 1000)", "", _TWO),
    Mutant(
        "silent for half of its lease",
        "lease_protocol",
        "_monotonic + self._lease_seconds -",
        "_monotonic + self._lease_seconds / 2 -",
        _TWO,
    ),
    Mutant(
        "a change doesn't end the silence",
        "lease_protocol",
        "= seen, self._clock.monotonic()",
        "= seen, self._since_monotonic or self._clock.monotonic()",
        _TWO,
    ),
    Mutant(
        "who was silent isn't who is displaced",
        "states",
        'Term("owner", "=", "seen_owner"), Term("token", "=", "seen_token"), Term("renewals", "=", "seen_renewals")',
        'Term("owner", "exists"), Term("renewals", ">=", "seen_renewals")',
        _TWO,
    ),
    Mutant("who took it anew is silent still", "states", ' Term("token", "=", "seen_token"),', "", _TWO),
    Mutant("who renewed is displaced", "states", ', Term("renewals", "=", "seen_renewals")', "", _TWO),
    Mutant("all clocks are equal", "lease_protocol", "_LONGER_FOR_OTHERS = 1.002", "_LONGER_FOR_OTHERS = 1", _TWO),
    Mutant("nobody is taken over", "states", "(ABSENT, FREE, OVERDUE, SILENT)", "(ABSENT, FREE)", STUCK),
    Mutant("everybody is taken over", "states", "(ABSENT, FREE, OVERDUE, SILENT)", "(ABSENT, FREE, HELD)", _TWO),
    # Tokens
    Mutant("the token stays", "states", "if_not_exists(#token, :floor) + :one", "if_not_exists(#token, :floor)", _GROW),
    Mutant(
        "a new record begins with one", "lease_protocol", "return max(highest_seen, clock.epoch_ms() * 1000)", "return 0", _GROW
    ),
    Mutant(
        "who waits doesn't look at the clock again",
        "lease_protocol",
        "floor=token_floor(terms.clock, floor)",
        "floor=floor",
        _GROW,
    ),
    Mutant(
        "who gives it back removes it",
        "states",
        '        sets={TTL: ":expiration"},\n        removes=("owner", "holder", "renewals", "lease_ms", "deadline_ms"),\n',
        "",
        _GROW,
    ),
    # How long a holder holds
    Mutant(
        "the lease begins with its answer",
        "lease_protocol",
        "Taken(terms.token, until)",
        "Taken(terms.token, terms.clock.monotonic() + lease_seconds())",
        _TWO,
    ),
    Mutant(
        "the clock is looked at after the end was computed",
        "lease_protocol",
        '(values["deadline_ms"], asked_monotonic + lasts)',
        '(values["deadline_ms"], terms.clock.monotonic() + lasts)',
        _TWO,
    ),
    Mutant(
        "the renewed lease begins with its answer",
        "lease_protocol",
        "return asked_monotonic + lease_seconds if",
        "return terms.clock.monotonic() + lease_seconds if",
        _TWO,
    ),
    Mutant(
        "the holder counts on the longest that it asked for",
        "lease_protocol",
        'untils.get(int(record.get("deadline_ms", 0)), min(untils.values()))',
        "max(untils.values())",
        _TWO,
    ),
    # Renewing
    Mutant("nobody sees a renewal", "states", '"renewals": ":renewal"', '"renewals": "#renewals"', _TWO),
    Mutant("a late renewal shortens the lease", "states", ', Term("renewals", "<=", "renewal")', "", _TWO),
    Mutant("who had it before renews it", "states", 'Term("token", "=", "token"), ', "", _TWO),
    Mutant("a renewal is anybody's", "states", "        (KEPT,),\n        KEPT,", "        (HELD,),\n        KEPT,", _TWO),
    # Giving back
    Mutant("anybody gives it back", "states", "(KEPT, OURS),\n        FREE", "(HELD,),\n        FREE", _TWO),
    # Lost answers
    Mutant(
        "a refused take is always somebody else's",
        "lease_protocol",
        "if state is Lease.OURS or state in Lease.TAKE.starts",
        "if state in Lease.TAKE.starts",
        _OWN,
    ),
    Mutant(
        "a refused take is always ours",
        "lease_protocol",
        'if record.get("owner") == terms.owner',
        'if "deadline_ms" in record',
        _TWO,
    ),
    Mutant("a refused release is always a theft", "lease_protocol", "if not lost or token is None", "if True", _NOT_ROBBED),
    Mutant(
        "a refused release is never a theft",
        "lease_protocol",
        "return isinstance(answer, Answered) or _was_ours(",
        "return True or _was_ours(",
        _ROBBED,
    ),
    Mutant("lost answers are forgotten", "insist", "answer.lost = answer.lost or lost", "pass", _NOT_ROBBED),
    # Fencing
    Mutant(
        "no guard",
        "fencing",
        'f"attribute_not_exists({name}) OR {name} <= {placeholder}"',
        'f"attribute_not_exists({name}) OR attribute_exists({name})"',
        _BACK,
    ),
    Mutant("the guard lets nobody follow", "fencing", "{name} <= {placeholder}", "{name} = {placeholder}", _BARRED),
    Mutant("the guard lets nobody write twice", "fencing", "{name} <= {placeholder}", "{name} < {placeholder}", _BARRED),
    Mutant("the guard is the wrong way round", "fencing", "{name} <= {placeholder}", "{name} >= {placeholder}", _BACK),
)
