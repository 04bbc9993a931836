"""The credentials of who typed a command, had before anything else is begun.

For commands only, as ``aws_refusals`` is: what a profile asks for (a code to be typed, a program to be run) is no function's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from botocore.exceptions import NoRegionError

from perinvoke.aws_refusals import ERRORS, Kind, Refusal, refusal_of

if TYPE_CHECKING:
    from boto3.session import Session


class NoCredentials(Exception):  # says what is so; commands raise their own error for it
    """They can't be had; ``refusal`` says why, with a text that is the whole message."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.text)
        self.refusal = refusal


def have_credentials(session: Session) -> bool:
    """Have the credentials at hand; False where nothing says which. Whether they are valid, only a request tells.

    What a role has to be assumed for, a code typed, or a login read, is done here, and not as if it were the service asked that
    refuses. Blocks as long as that takes.

    Raises:
        NoCredentials: half of them, a login that is over, a role that may not be assumed, a program or file that isn't there; or
            who hands them out doesn't answer.
        NoRegionError: no region is set, and a role can't be assumed nowhere.
    """
    try:
        found = session.get_credentials()
        if found is not None:
            found.get_frozen_credentials()
    except NoRegionError:
        raise
    except ERRORS as error:
        refusal = refusal_of(error)
        operation = getattr(error, "operation_name", "")
        text = f"the credentials can't be had: {operation}, {refusal.text}" if operation else refusal.text
        raise NoCredentials(replace(refusal, text=text)) from error
    except EOFError as error:  # of getpass
        raise _no_login(
            f"the profile {session.profile_name!r} asks for an MFA code, and nobody can type one here: stdin is no terminal. "
            "Assume the role before, and set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN."
        ) from error
    except (OSError, ValueError) as error:  # a program or a file that the profile names
        why = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        raise _no_login(f"the credentials of profile {session.profile_name!r} can't be read: {why}") from error
    return found is not None


def _no_login(text: str) -> NoCredentials:
    return NoCredentials(Refusal(Kind.CREDENTIALS, "", text))
