"""What goes wrong with layers. Each message names the thing, the limit and the next step."""

from __future__ import annotations

from perinvoke.errors import FixConfiguration, TryAgain


class LayerError(FixConfiguration):
    """What was asked of a layer can't be had as asked; the same command will fail again."""


class LayerUnavailable(TryAgain):
    """AWS or a package index didn't answer, is busy, or somebody else changed something meanwhile; try again."""


class AwsRefused(LayerError):
    """AWS says no.

    Attributes:
        action: what was asked for, as IAM names it: ``lambda:PublishLayerVersion``. Empty where nothing was.
        region: where.
        code: AWS's name for the reason, such as ``ResourceNotFoundException``; empty where AWS has not answered.
    """

    action: str = ""
    region: str = ""
    code: str = ""


class AwsForbidden(AwsRefused):
    """The credentials are good, and don't allow the action."""


class AwsLogin(AwsRefused):
    """There are no credentials, half of them, or ones that are over or wrong."""


class AwsUnavailable(LayerUnavailable):
    """Throttled, nobody answered, AWS made a mistake, or somebody else has changed the thing meanwhile.

    Attributes:
        action: what was asked for, as IAM names it.
        region: where.
        code: AWS's name for the reason, such as ``PreconditionFailedException``; empty where there was no answer.
        carried_out: False, or None when nobody knows whether the request has done its work.
    """

    action: str
    region: str
    code: str
    carried_out: bool | None
