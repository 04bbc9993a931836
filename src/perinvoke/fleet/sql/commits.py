"""What an error that came while a COMMIT was out says of it: that it surely was not carried out, or nothing.

Pure. What isn't known here says nothing: asking twice costs a look, committing twice may cost money.

* PostgreSQL answers COMMIT with an error where it can't: a deferred constraint, a serialization failure, Aurora DSQL's conflicts.
  Then nothing was committed. An end of the session (class 08 and 57P0x), a failure of the server's own (XX, 58), and a cancelled
  statement, which a proxy may report for a COMMIT that goes on, say nothing.
* MySQL and MariaDB likewise: 1213 or a failed check is an answer; a killed connection or statement, a shutdown and "error during
  COMMIT" say nothing.
* SQLite leaves the transaction as it was where another connection is in the way, and takes it back where the disk is full or a
  deferred constraint doesn't hold. What an input/output error has left, only the next one who opens the file knows.
"""

from __future__ import annotations

import sqlite3

from perinvoke.fleet.sql.conflicts import conflict_of, mysql_number_of, sqlstate_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sqlalchemy.exc import DBAPIError

# https://www.postgresql.org/docs/current/errcodes-appendix.html: connection exceptions, system errors, internal errors;
# statement completion unknown, query canceled, and the server's shutdowns.
_UNKNOWN_CLASSES = ("08", "58", "XX")
_UNKNOWN_STATES = ("40003", "57014", "57P01", "57P02", "57P03", "57P04", "57P05")
# https://mariadb.com/kb/en/mariadb-error-code-reference/: the server's own numbers begin at 1000, the clients' are 2000 to 2999.
_SERVERS_FROM, _CLIENTS, _SERVERS_AGAIN = 1000, 2000, 3000
_UNKNOWN_NUMBERS = (
    *(1053, 1079, 1180, 1196),  # shutdowns; an error during COMMIT; one that couldn't all be rolled back
    *(1152, 1158, 1159, 1160, 1161, 1184),  # connections that broke
    *(1317, 1927, 1969, 3024, 4031),  # statements and connections that were ended from outside
)
_SQLITE_FULL, _SQLITE_CONSTRAINT, _PRIMARY = 13, 19, 0xFF


def came_from_commit(error: DBAPIError) -> bool:
    """Whether an error that ``Session.commit`` raised is COMMIT's own: the flush's have their statement with them."""
    return error.statement is None


def surely_not_committed(error: DBAPIError) -> bool:
    """Whether the database has answered that the transaction is not committed, and won't be."""
    if error.connection_invalidated:
        return False
    if conflict_of(error) is not None:
        return True
    if isinstance(error.orig, sqlite3.Error):
        return (getattr(error.orig, "sqlite_errorcode", None) or 0) & _PRIMARY in (_SQLITE_FULL, _SQLITE_CONSTRAINT)
    number = mysql_number_of(error)
    if number is not None:
        from_server = _SERVERS_FROM <= number < _CLIENTS or number >= _SERVERS_AGAIN
        return from_server and number not in _UNKNOWN_NUMBERS
    sqlstate = sqlstate_of(error)
    return sqlstate is not None and not sqlstate.startswith(_UNKNOWN_CLASSES) and sqlstate not in _UNKNOWN_STATES
