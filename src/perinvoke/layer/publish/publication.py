"""One zip in one region: looked for, uploaded, published, and opened to other accounts.

Rules:

* The same bytes are not published twice. PublishLayerVersion makes a new version each time that it is asked, and has no token
  by which it would know a repetition. So a request is never repeated before the layer's versions have been looked through again
  for these bytes, if the first one may have been carried out.
* That holds for one publisher. Two at the same time may both look, find nothing, and both publish: Lambda has no condition that
  would prevent it. It does no harm; the versions are equal, and from then on both find the newer one.
* It also rests on Lambda showing a version that it has just made. Nothing is written of how soon it does; it is given a second.
"""

from __future__ import annotations

import hashlib
import random
from enum import Enum
from typing import TYPE_CHECKING, Any

from perinvoke.layer.errors import AwsUnavailable, LayerError
from perinvoke.layer.publish.plan import EVERYBODY
from perinvoke.layer.publish.results import Outcome, Result
from perinvoke.layer.publish.upload import have_uploaded, key_of
from perinvoke.layer.publish.versions import facts_of, find_version

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from perinvoke.layer.account import Account, Service
    from perinvoke.layer.publish.plan import Target

# Attempts and seconds: 19 of them in pauses at most, 10 on average. Arbitrary; Lambda lets 15 such requests a second through.
ATTEMPTS = 5
_BASE_SECONDS = 0.5
_LONGEST_SECONDS = 8.0
_SETTLING_SECONDS = 1.0
# Lambda unpacks what it was sent before it answers, and a whole zip may be on a slow line.
_READ_SECONDS = 120.0
_MAY = "lambda:GetLayerVersion"  # all that a layer version's policy can allow
_CONFLICT = "ResourceConflictException"


class Stage(Enum):
    """What is being done; after an interruption it tells what may have happened."""

    LOOKING = "looking for it"
    UPLOADING = "uploading it"
    PUBLISHING = "publishing it"
    OPENING = "letting accounts use it"


class Interrupted(Exception):
    """The command is to end; nothing that this target waited for is begun any more.

    Attributes:
        in_doubt: whether a version may have been made all the same.
    """

    def __init__(self, *, in_doubt: bool = False) -> None:
        super().__init__()
        self.in_doubt = in_doubt


class Publication:
    """One target on its way; lives as long as the command, in one thread."""

    def __init__(self, account: Account, target: Target, *, on_stage: Callable[[Stage], object], stop: threading.Event) -> None:
        """Make no request.

        Args:
            account: who publishes.
            target: what and where.
            on_stage: told before each step.
            stop: set when nothing more shall be begun.
        """
        self._account, self._target = account, target
        self._on_stage, self._stop = on_stage, stop

    def look(self) -> Result:
        """What would be done; only reads."""
        self._begin(Stage.LOOKING)
        arn = self._find(self._account.service("lambda", self._target.region))
        return Result(self._target, Outcome.WOULD_PUBLISH if arn is None else Outcome.THERE, arn)

    def publish(self) -> Result:
        """Have it there, and usable by the accounts; blocks.

        Raises:
            Interrupted: it was stopped between two steps.
            LayerError, LayerUnavailable: it can't be had.
        """
        target = self._target
        looking = self._account.service("lambda", target.region)
        self._begin(Stage.LOOKING)
        arn, outcome = self._find(looking), Outcome.THERE
        if arn is None:
            content = self._content()
            arn, outcome = self._published(looking, content), Outcome.PUBLISHED
        try:
            self._open(looking, arn)
        except (LayerError, AwsUnavailable) as error:
            return Result(target, Outcome.FAILED, arn, f"{outcome.value}, but {error}", error)
        except Interrupted:
            return Result(target, Outcome.FAILED, arn, f"{outcome.value}, but interrupted before all accounts were let in")
        return Result(target, outcome, arn)

    def _find(self, looking: Service) -> str | None:
        return find_version(looking, self._target.layer, self._target.zip)

    def _content(self) -> dict[str, Any]:
        """What PublishLayerVersion takes the bytes from."""
        target = self._target
        if target.bucket is None:
            return {"ZipFile": _bytes_of(target)}
        self._begin(Stage.UPLOADING)
        have_uploaded(self._account.service("s3", target.region, read_seconds=_READ_SECONDS), target.bucket, target.zip)
        return {"S3Bucket": target.bucket, "S3Key": key_of(target.zip)}

    def _published(self, looking: Service, content: dict[str, Any]) -> str:
        """Publish until it is there; its ARN."""
        publishing = self._account.service("lambda", self._target.region, repeats=False, read_seconds=_READ_SECONDS)
        may_be_there, left = False, ATTEMPTS
        while True:
            left -= 1
            try:
                # After the first time: is it there from the last attempt? Not to be asked while that one is still on its way.
                found = self._find(looking) if may_be_there else None
                return found or self._publish_once(publishing, content)
            except AwsUnavailable as error:
                may_be_there = may_be_there or error.carried_out is None
                if not left:
                    raise _given_up(error, may_be_there=may_be_there) from error
            self._pause(ATTEMPTS - left, in_doubt=may_be_there)

    def _publish_once(self, publishing: Service, content: dict[str, Any]) -> str:
        target = self._target
        self._begin(Stage.PUBLISHING)
        made = publishing.ask(
            "publish_layer_version",
            about=f"layer {target.layer!r}",
            expects="LayerVersionArn",
            LayerName=target.layer,
            Content=content,
            **facts_of(target.zip),
        )
        has = made.get("Content", {}).get("CodeSha256")
        if has != target.zip.code_sha256:
            text = f"Lambda has made {made['LayerVersionArn']} of other bytes than {target.zip.path}: their hash is {has}"
            raise LayerError(f"{text}. Don't use it; delete it, build again and publish again.")
        return str(made["LayerVersionArn"])

    def _open(self, service: Service, arn: str) -> None:
        """Let the accounts use it; a statement that is there, of this run or an earlier one, is fine."""
        target, number = self._target, int(arn.rpartition(":")[2])
        for account in target.accounts:
            self._begin(Stage.OPENING)
            try:
                service.ask(
                    "add_layer_version_permission",
                    about=f"layer {target.layer!r}, version {number}",
                    LayerName=target.layer,
                    VersionNumber=number,
                    StatementId=_statement_id(account),
                    Action=_MAY,
                    Principal=account,
                )
            except AwsUnavailable as error:
                if error.code != _CONFLICT:
                    raise

    def _begin(self, stage: Stage) -> None:
        if self._stop.is_set():
            raise Interrupted
        self._on_stage(stage)

    def _pause(self, attempt: int, *, in_doubt: bool) -> None:
        longest = min(_LONGEST_SECONDS, _BASE_SECONDS * 2**attempt)
        seconds = random.uniform(0, longest) + (_SETTLING_SECONDS if in_doubt else 0)  # noqa: S311 - full jitter
        if self._stop.wait(seconds):
            raise Interrupted(in_doubt=in_doubt)


def _statement_id(account: str) -> str:
    """The same in every run, so that a second statement for an account is never added."""
    return f"perinvoke-{'everybody' if account == EVERYBODY else account}"


def _bytes_of(target: Target) -> bytes:
    """The zip, if it still is what was read."""
    path = target.zip.path
    try:
        content = path.read_bytes()
    except OSError as error:
        raise LayerError(f"{path} can't be read any more: {error.strerror or error}") from error
    if hashlib.sha256(content).hexdigest() != target.zip.sha256:
        raise LayerError(f"{path} has changed since it was looked at. Publish again, when nobody builds")
    return content


def _given_up(error: AwsUnavailable, *, may_be_there: bool) -> AwsUnavailable:
    doubt = " Whether a version was made isn't known; the same command looks for it first." if may_be_there else ""
    fields = {"action": error.action, "region": error.region, "code": error.code, "carried_out": None if may_be_there else False}
    return AwsUnavailable(f"{error}{doubt}", **fields)
