"""The options of ``perinvoke layer``. Light to import: every ``perinvoke --help`` loads it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_DESCRIPTION = """\
Build the Lambda layer, publish it, attach it to a function, and take it off again."""

_EPILOG = """\
examples:
  perinvoke layer build
  perinvoke layer build --python 3.13 --arch arm64 --with-boto3 --with-sql
  perinvoke layer publish --region eu-west-1,us-east-1 --dry-run
  perinvoke layer attach orders --region eu-west-1
  perinvoke layer detach orders --region eu-west-1

exit code: 0 when it was done, or there was nothing to do; 1 when some regions failed, or you said no; 2 when something asked for
is wrong or can't be had; 130 after Ctrl-C."""

_PUBLISH_EPILOG = """\
Needs lambda:ListLayerVersions, lambda:GetLayerVersion and lambda:PublishLayerVersion; for --account also
lambda:AddLayerVersionPermission; for --bucket also s3:GetObject and s3:PutObject.

What fails in one region doesn't stop the others; the same command then publishes what is missing. Two who publish the same at the
same time may make two versions of it."""

_RAW = argparse.RawDescriptionHelpFormatter


def add_layer(commands: Any) -> Any:
    """Add ``layer`` and its commands, each of which sets ``verb``; the parser of ``layer``."""
    layer = commands.add_parser(
        "layer",
        help="build, publish and attach the Lambda layer",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=_RAW,
    )
    verbs = layer.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_build(verbs)
    _add_publish(verbs)
    _add_attach(verbs)
    _add_detach(verbs)
    return layer


def _add(verbs: Any, name: str, text: str) -> Any:
    parser = verbs.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", formatter_class=_RAW, allow_abbrev=False
    )
    parser.set_defaults(verb=name)
    return parser


def _add_build(verbs: Any) -> None:
    build = _add(verbs, "build", "make the zips: one for all where everything is pure Python, else one for each target")
    build.add_argument(
        "--python", action=_Joined, default="3.13,3.14", metavar="V,…", help="versions of Python (default: 3.13,3.14)"
    )
    build.add_argument(
        "--arch", action=_Joined, default="x86_64,arm64", metavar="A,…", help="architectures (default: x86_64,arm64)"
    )
    build.add_argument("--with-boto3", action="store_true", help="bring boto3 too (default: the runtime's own)")
    build.add_argument("--with-sql", action="store_true", help="bring SQLAlchemy, psycopg and PyMySQL")
    build.add_argument(
        "--with-pgbouncer",
        action="append",
        default=[],
        type=Path,
        metavar="PATH",
        help="bring this binary, or a directory's bin/pgbouncer, lib/ and licence, and the extension that runs it (may be "
        "repeated, once for each architecture)",
    )
    build.add_argument(
        "--compile", action="store_true", help="bring .pyc files too, so that no process compiles; needs each Python here"
    )
    build.add_argument("--out", default=Path("dist"), type=Path, metavar="D", help="the directory they go to (default: dist)")


def _add_publish(verbs: Any) -> None:
    publish = _add(verbs, "publish", "publish built zips, in several regions at once; the same bytes are published once")
    publish.epilog = _PUBLISH_EPILOG
    publish.add_argument("zips", nargs="*", type=Path, metavar="ZIP", help="what build made (default: all of dist)")
    publish.add_argument("--name", metavar="N", help="the layer's name (default: what build called it)")
    publish.add_argument("--bucket", metavar="B", help="S3 bucket for zips over 50 MB; {region} in it stands for the region")
    publish.add_argument(
        "--account",
        action="append",
        default=[],
        metavar="ID",
        help="let this account use it (may be repeated); 'all' means everybody",
    )
    publish.add_argument("--dry-run", action="store_true", help="look what is there already, print the plan, change nothing")
    publish.add_argument(
        "--region",
        action=_Joined,
        metavar="R,…",
        help="regions, with commas between them; default: AWS_DEFAULT_REGION, or the profile's",
    )
    _add_aws(publish)


def _add_attach(verbs: Any) -> None:
    attach = _add(verbs, "attach", "put the layer on a function: shows what changes, asks, applies, waits")
    attach.add_argument("function", metavar="FUNCTION", help="the function's name or ARN")
    attach.add_argument(
        "--route",
        choices=("wrapper", "handler"),
        help="wrapper: AWS_LAMBDA_EXEC_WRAPPER, which also supervises and preloads; handler: Handler=perinvoke.handler.handler "
        "(default: wrapper, unless another wrapper is set)",
    )
    attach.add_argument(
        "--version-arn",
        metavar="ARN",
        help="the layer version (default: the newest that fits, of the layer that it has or of 'perinvoke')",
    )
    _add_change(attach)


def _add_detach(verbs: Any) -> None:
    detach = _add(verbs, "detach", "take the layer off a function again, so that it is as it was")
    detach.add_argument("function", metavar="FUNCTION", help="the function's name or ARN")
    _add_change(detach)


def _add_change(parser: Any) -> None:
    parser.add_argument("--yes", action="store_true", help="don't ask")
    parser.add_argument("--dry-run", action="store_true", help="show what would change, and change nothing")
    parser.add_argument("--no-publish", action="store_true", help="on Managed Instances, don't publish a version afterwards")
    parser.add_argument("--region", metavar="R", help="default: the ARN's, AWS_DEFAULT_REGION, or the profile's")
    _add_aws(parser)


class _Joined(argparse.Action):
    """Of an option whose value is a list: who gives it twice means both. Lives as long as the parser, which parses once."""

    _is_given = False

    def __call__(self, _parser: object, namespace: argparse.Namespace, values: Any, _option: str | None = None) -> None:
        text = f"{getattr(namespace, self.dest)},{values}" if self._is_given else values
        setattr(namespace, self.dest, text)
        self._is_given = True


def _add_aws(parser: Any) -> None:
    parser.add_argument("--profile", metavar="P", help="whose credentials; default: AWS_PROFILE")
    parser.add_argument("--endpoint-url", metavar="URL", help="another AWS, such as a local one")
