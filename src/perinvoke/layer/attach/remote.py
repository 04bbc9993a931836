"""One function in AWS: read, updated under a condition, published. All that waits is here, and all waiting is bounded.

An update is never repeated blindly. Its condition is the revision that was read, and every change makes a new one: an update that
was carried out while its answer was lost would then fail by its own doing. So after a doubtful answer the function is looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import botocore

from perinvoke.layer.attach.configuration import configuration_of, members
from perinvoke.layer.attach.pauses import pauses
from perinvoke.layer.attach.secrets import without_values
from perinvoke.layer.errors import AwsRefused, AwsUnavailable, LayerError, LayerUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from perinvoke.layer.account import Account, Service
    from perinvoke.layer.attach.configuration import Configuration, Parts
    from perinvoke.layer.attach.names import FunctionName
    from perinvoke.layer.attach.plan import Plan

    Tell = Callable[[str], object]

LATEST_PUBLISHED = "$LATEST.PUBLISHED"

# Seconds. Lambda applies a change within seconds, with a VPC or a large layer within a minute or two.
UPDATE_SECONDS = 300.0
# New instances have to start for a version; botocore's own waiter gives it as long.
VERSION_SECONDS = 1560.0
# How long it is tried to have a request accepted that is throttled, or not answered; arbitrary.
INSIST_SECONDS = 30.0
_CHANGED, _BEING_CHANGED = "PreconditionFailedException", "ResourceConflictException"


class SomebodyElse(LayerUnavailable):
    """The function was changed between the look and the change; nothing was overwritten."""


class RemoteFunction:
    """A function in a region; lives as long as the command."""

    def __init__(self, account: Account, name: FunctionName, tell: Tell) -> None:
        """``tell`` takes a line about what is being waited for.

        Raises:
            LayerError: no region is set, or botocore is too old.
        """
        self._asked, self._about, self._tell = name.asked, f"function {name.name!r}", tell
        self.name = name.name
        self.service: Service = account.service("lambda", name.region)
        self._once = account.service("lambda", name.region, repeats=False)
        if not self.service.knows("publish_version", "PublishTo"):
            # It would leave out of the configuration what it doesn't know, and the function would seem to be an ordinary one.
            raise LayerError(
                f"the installed botocore {botocore.__version__} is older than Managed Instances, and can't tell whether "
                f"{self._about} runs on them. Install a newer one: pip install --upgrade 'perinvoke[layer]'"
            )

    def read(self) -> Configuration:
        """``$LATEST`` as it is now.

        Raises:
            LayerError: there is no such function, or its variables can't be read.
        """
        try:
            return configuration_of(self._get())
        except AwsRefused as error:
            if error.code != "ResourceNotFoundException":
                raise
            where = f"{self.service.region}, in the account of these credentials"
            raise LayerError(f"there is no {self._about} in {where}. Check the name, --region and --profile") from error

    def read_published(self) -> Configuration | None:
        """``$LATEST.PUBLISHED``; None where nobody has published it."""
        try:
            return configuration_of(self._get(Qualifier=LATEST_PUBLISHED))
        except AwsRefused as error:
            if error.code != "ResourceNotFoundException":
                raise
            return None

    def settled(self) -> Configuration:
        """``$LATEST``, when nobody's change is under way any more; blocks for five minutes at most.

        Raises:
            LayerError: the function can't be changed, because it has failed.
            LayerUnavailable: another change hasn't ended by then.
        """
        found = self.read()
        if _under_way(found):
            self._tell("waiting for another change of the function, which is under way ...")
            found = self._waited(self.read, UPDATE_SECONDS, "another change of it is still under way")
        if found.state == "Failed":
            raise LayerError(f"{self._about} has failed ({found.state_reason}), and can't be changed. Mend that first")
        return found

    def update(self, now: Configuration, plan: Plan) -> None:
        """Have the change made, if the function is as it was read; returns when Lambda has taken it, not yet applied it.

        Raises:
            SomebodyElse: it isn't. Nothing was overwritten.
            LayerUnavailable: it could not be had within half a minute.
            LayerError: Lambda refuses it.
        """
        changes = members(plan.before, plan.after)
        waiting = pauses(INSIST_SECONDS)
        while True:
            try:
                self._once.ask(
                    "update_function_configuration",
                    about=self._about,
                    expects="FunctionArn",
                    FunctionName=self._asked,
                    **_condition(now),
                    **changes,
                )
            except AwsUnavailable as error:
                if self._was_made(now, plan.after, error):
                    return
                if error.code == _BEING_CHANGED:
                    self._tell("another change of the function is under way; waiting for its end ...")
                    self._waited(self.read, UPDATE_SECONDS, "another change of it is still under way")
                if next(waiting, None) is None:
                    raise
            except AwsRefused as error:
                values = [*plan.before.environment.values(), *plan.after.environment.values()]
                raise type(error)(without_values(str(error), values), **vars(error)) from None
            else:
                return

    def applied(self, before: Configuration, after: Parts) -> Configuration:
        """Wait until Lambda has applied the change, five minutes at most; the function then.

        Raises:
            LayerError: it couldn't apply it.
            SomebodyElse: it isn't that change any more.
            LayerUnavailable: it hasn't by then.
        """
        self._tell("waiting until Lambda has applied it ...")

        def read() -> Configuration | None:
            found = self.read()
            return None if (found.revision, found.parts) == (before.revision, before.parts) else found  # a look from before it

        found = self._waited(read, UPDATE_SECONDS, "Lambda is still applying the change")
        if found.update_status == "Failed":
            raise LayerError(
                f"Lambda could not apply the change of {self._about}: {found.update_reason}. Its configuration is changed all "
                "the same; mend the cause, or take it back with perinvoke layer detach"
            )
        if found.parts != after:
            raise self._somebody_else("right after this change")
        return found

    def publish(self, latest: Configuration) -> None:
        """Publish ``$LATEST`` as ``$LATEST.PUBLISHED``, if it is as it was read; returns before that is active.

        Raises:
            SomebodyElse: it isn't as it was read.
            LayerUnavailable: it could not be had within half a minute.
            LayerError: Lambda refuses it.
        """
        waiting = pauses(INSIST_SECONDS)
        while True:
            try:
                self._once.ask(
                    "publish_version",
                    about=self._about,
                    expects="FunctionArn",
                    FunctionName=self._asked,
                    **_condition(latest),
                    PublishTo="LATEST_PUBLISHED",
                )
            except AwsUnavailable as error:
                if error.code == _CHANGED:
                    # Lambda makes new revisions of its own, too, when it has finished something.
                    found = self.read()
                    if (found.parts, found.others) != (latest.parts, latest.others):
                        raise self._somebody_else("before it was published") from error
                    latest = found
                elif error.carried_out is None and self._is_published(latest):
                    return
                if next(waiting, None) is None:
                    raise
            else:
                return

    def activated(self) -> None:
        """Wait until ``$LATEST.PUBLISHED`` is active; 26 minutes at most.

        Raises:
            LayerError: it can't be.
            LayerUnavailable: it isn't by then.
        """
        self._tell(f"waiting until version {LATEST_PUBLISHED} is active; instances may have to start, which takes minutes ...")
        found = self._waited(self.read_published, VERSION_SECONDS, f"version {LATEST_PUBLISHED} is still pending")
        if found.state == "Failed" or found.update_status == "Failed":
            why = found.state_reason or found.update_reason or "no reason given"
            raise LayerError(
                f"version {LATEST_PUBLISHED} of {self._about} has failed: {why}. Mend the cause and publish again (aws lambda "
                f"publish-version --function-name {self.name} --publish-to LATEST_PUBLISHED), or take the change back with "
                "perinvoke layer detach"
            )

    def _is_published(self, latest: Configuration) -> bool:
        found = self.read_published()
        return found is not None and (found.parts, found.others) == (latest.parts, latest.others)

    def _was_made(self, now: Configuration, after: Parts, error: AwsUnavailable) -> bool:
        """Whether the change is there, whatever the answer was.

        Raises:
            SomebodyElse: another one is.
        """
        if error.code != _CHANGED and error.carried_out is False:
            return False
        found = self.read()
        if found.parts == after:
            return True  # the answer of an earlier attempt was lost, and it had been carried out
        if found.revision != now.revision:  # the same: Lambda has refused it, and still shows what was before
            raise self._somebody_else("meanwhile") from error
        return False

    def _somebody_else(self, when: str) -> SomebodyElse:
        return SomebodyElse(
            f"somebody else has changed {self._about} {when}. Nothing of that is overwritten; run the command again to see what "
            "it is now"
        )

    def _waited(self, read: Callable[[], Configuration | None], seconds: float, otherwise: str) -> Configuration:
        """Look until it is there and no longer under way; an answer that doesn't come doesn't end the waiting."""
        problem: AwsUnavailable | None = None
        for _ in pauses(seconds, self._tell):
            try:
                found = read()
            except AwsUnavailable as error:
                problem = error
                continue
            problem = None
            if found is not None and not _under_way(found):
                return found
        if problem is not None:
            raise problem
        raise LayerUnavailable(
            f"{self._about}: {otherwise} after {seconds:.0f} s. See its page in the console; the same command goes on from here"
        )

    def _get(self, **more: Any) -> dict[str, Any]:
        return self.service.ask(
            "get_function_configuration", about=self._about, expects="FunctionArn", FunctionName=self._asked, **more
        )


def _condition(seen: Configuration) -> dict[str, str]:
    """That it is as it was seen. AWS always tells a revision, emulators such as moto may not, and take no condition then."""
    return {"RevisionId": seen.revision} if seen.revision else {}


def _under_way(found: Configuration) -> bool:
    return found.update_status == "InProgress" or found.state == "Pending"
