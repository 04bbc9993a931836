"""A stand-in of the managed runtime: places, start and user as a function finds them on Lambda, around the real awslambdaric.

Seen by the function: the layers at ``/opt``, the interpreter at ``/var/lang``, awslambdaric and boto3 at ``/var/runtime``, its
code at ``/var/task``, all read-only, and a ``/tmp`` of its own. That takes mounts in a namespace of its own, which only root may
make; it then runs as ``nobody``. Elsewhere the same folders lie below a prefix, and it runs as who runs the tests.

``bootstrap`` and ``bootstrap.py`` do what AWS documents and what is known of its own: the exec wrapper gets the interpreter
and the script as arguments, and must exist (127) and be executable (126); the layers' folders are added, and their ``.pth`` read,
only where ``PYTHONPATH`` isn't set; then it is set, for children.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perinvoke.local import LocalConfig, LocalEnvironment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

OURS = "/opt/perinvoke/exec"
MOUNTED, PREFIXED = "at /opt in a mount namespace", "below a prefix"
VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"
# What the runtime brings besides its two scripts: awslambdaric with what it needs, and boto3 with what that needs.
_RUNTIME = ("awslambdaric", "runtime_client", "snapshot_restore_py", "simplejson")
_SDK = ("boto3", "botocore", "s3transfer", "jmespath", "dateutil", "six", "urllib3")
# Of the caller's variables these say something about the caller; the managed runtime's are below.
_NOT_INHERITED = "PYTHON|VIRTUAL_ENV|HOME|PATH|LD_LIBRARY_PATH|TMPDIR|PERINVOKE_ROOT|PWD|OLDPWD|PYTEST|COV"

_BOOTSTRAP = """\
#!/bin/sh
# As the managed one: behind the exec wrapper, if the function names one.
export AWS_EXECUTION_ENV=AWS_Lambda_{version}
set -- "{root}/var/lang/bin/{version}" "{root}/var/runtime/bootstrap.py"
[ -z "${{AWS_LAMBDA_EXEC_WRAPPER-}}" ] && exec "$@"
[ -f "$AWS_LAMBDA_EXEC_WRAPPER" ] || {{ echo "$AWS_LAMBDA_EXEC_WRAPPER: does not exist"; exit 127; }}
[ -x "$AWS_LAMBDA_EXEC_WRAPPER" ] || {{ echo "$AWS_LAMBDA_EXEC_WRAPPER: is not an executable"; exit 126; }}
exec "$AWS_LAMBDA_EXEC_WRAPPER" "$@"
"""

_BOOTSTRAP_PY = """\
import os, site, sys

import awslambdaric.__main__ as awslambdaricmain

task = os.environ["LAMBDA_TASK_ROOT"]
root = os.path.abspath(__file__).removesuffix("/var/runtime/bootstrap.py")
layers = [root + "/opt/python/lib/{version}/site-packages", root + "/opt/python"]
own = "PYTHONPATH" not in os.environ
if own:
    sys.path[:0] = [*layers, root + "/var/lang/lib/{version}/site-packages"]
sys.path.insert(0, task)
for folder in [task, *layers] if own else [task]:
    site.addsitedir(folder)
if own:
    os.environ["PYTHONPATH"] = os.environ["LAMBDA_RUNTIME_DIR"]
if __name__ == "__main__":
    awslambdaricmain.main([task, os.environ["_HANDLER"]])
"""

# Staged in a folder first: what is mounted may itself come from below /var, /opt or /tmp.
_MOUNTING = """\
set -e
mount -t tmpfs tmpfs /mnt
for name in opt lang runtime task tmp log; do mkdir /mnt/$name; done
mount --bind "$MANAGED_TMP" /mnt/tmp
mount --bind "$MANAGED_LOG" /mnt/log
chmod 755 /mnt/log
chmod -R a+rwX /mnt/log
mount --bind "$MANAGED_ROOT/opt" /mnt/opt
mount --bind "$MANAGED_LANG" /mnt/lang
mount --bind "$MANAGED_ROOT/var/runtime" /mnt/runtime
mount --bind "$MANAGED_TASK" /mnt/task
{packages}
for name in opt lang runtime task; do mount -o remount,bind,ro /mnt/$name; done
mount --rbind /mnt /var
mount --bind /mnt/opt /opt
mount --bind /mnt/tmp /tmp
# What is told of it from outside holds inside, too.
mkdir -p "$MANAGED_TMP"
mount --bind /mnt/tmp "$MANAGED_TMP"
umount -l /mnt
cd /var/task
"""


@dataclass(frozen=True)
class ManagedRuntime:
    """The folders of one managed runtime; lives as long as ``folder``, in which they are made.

    Attributes:
        folder: for nobody else. What is below ``opt`` in it, is ``/opt`` to the function.
        mounts: the places are the real ones.
    """

    folder: Path
    mounts: bool

    @property
    def root(self) -> str:
        """What stands before ``/opt``, ``/var/task`` and the like, as the function sees it."""
        return "" if self.mounts else str(self.folder)

    @property
    def opt(self) -> Path:
        return self.folder / "opt"

    @property
    def tmp(self) -> Path:
        """The function's ``/tmp``, as it is seen from here."""
        return self.folder / "tmp"

    @property
    def interpreter(self) -> str:
        return f"{self.root}/var/lang/bin/{VERSION}"

    def make(self) -> ManagedRuntime:
        for name in ("opt", "tmp", "var/runtime", "bin"):
            (self.folder / name).mkdir(parents=True)
        self.tmp.chmod(0o1777)
        runtime = self.folder / "var" / "runtime"
        words = {"root": self.root, "version": VERSION}
        (runtime / "bootstrap").write_text(_BOOTSTRAP.format(**words))
        (runtime / "bootstrap").chmod(0o755)
        (runtime / "bootstrap.py").write_text(_BOOTSTRAP_PY.format(**words))
        if not self.mounts:
            (self.folder / "var" / "lang").symlink_to(base_prefix())
        for name, source in packages().items():
            place = runtime / name
            if not self.mounts:
                place.symlink_to(source)
            elif source.is_dir():
                place.mkdir()
            else:
                place.touch()
        return self

    def environment(self, handler: str, task: Path, *, wrapper: str | None = None, **options: Any) -> LocalEnvironment:
        """A local environment whose runtime is this one; ``wrapper`` is the exec wrapper, below ``/opt``."""
        env: dict[str, str] = {**options.pop("env", {})}
        if wrapper is not None:
            env["AWS_LAMBDA_EXEC_WRAPPER"] = self.root + wrapper
        # Told that workers are replaced, the local runner adds perinvoke's own exec wrapper unless there is one of that name.
        supervised = OURS in (wrapper, env.get("PERINVOKE_EXEC_WRAPPER"))
        launcher = self._launcher(task, env, name="perinvoke-exec" if supervised else "launch")
        outside = {"AWS_LAMBDA_EXEC_WRAPPER": str(launcher), "TMPDIR": str(self.tmp)}
        config = {"workers": 4, "queue": True, "supervise": supervised, **options}
        return LocalEnvironment(LocalConfig(handler=handler, directory=task, env=outside, **config))

    def run(self, task: Path, *, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        """Run the bootstrap script without a platform, to its end."""
        launcher = self._launcher(task, dict(env), name="launch")
        return subprocess.run([launcher], capture_output=True, text=True, timeout=60, check=False)

    def _launcher(self, task: Path, env: dict[str, str], *, name: str) -> Path:
        """Starts the bootstrap script, whatever its arguments: to the local runner it is an exec wrapper."""
        kept = f"^({_NOT_INHERITED})"
        managed = {
            "PATH": f"{self.root}/var/lang/bin:/usr/local/bin:/usr/bin:/bin:{self.root}/opt/bin",
            "LD_LIBRARY_PATH": ":".join(
                self.root + place for place in ("/var/lang/lib", "/var/runtime", "/var/task", "/opt/lib")
            ),
            "LANG": "en_US.UTF-8",
            "LAMBDA_TASK_ROOT": "/var/task" if self.mounts else str(task),
            "LAMBDA_RUNTIME_DIR": f"{self.root}/var/runtime",
            **({} if self.mounts else {"TMPDIR": str(self.tmp)}),
            **env,
        }
        lines = [
            "#!/bin/sh",
            f"for name in $(env | sed -n 's/^\\([A-Za-z_][A-Za-z0-9_]*\\)=.*/\\1/p' | grep -E {shlex.quote(kept)})",
            "do unset $name; done",
            "unset AWS_LAMBDA_EXEC_WRAPPER",
        ]
        exports = [f"export {name}={shlex.quote(value)}" for name, value in managed.items()]
        bootstrap = f'"{self.root}/var/runtime/bootstrap"'
        if self.mounts:
            script = self.folder / "bin" / f"mount-{os.urandom(4).hex()}"
            sockets = ['[ -z "$MANAGED_LOG_NAME" ] || export _LAMBDA_TELEMETRY_LOG_FD_PROVIDER_SOCKET=/var/log/$MANAGED_LOG_NAME']
            drop = f"exec setpriv --reuid=65534 --regid=65534 --clear-groups --no-new-privs {bootstrap}"
            mounting = _MOUNTING.format(packages="\n".join(self._mounts()))
            script.write_text("\n".join([mounting, *sockets, *exports, drop, ""]))
            lines += [
                "export PATH=/usr/sbin:/usr/bin:/sbin:/bin",
                f"export MANAGED_ROOT={shlex.quote(str(self.folder))} MANAGED_LANG={shlex.quote(base_prefix())}",
                f"export MANAGED_TASK={shlex.quote(str(task))} MANAGED_TMP={shlex.quote(str(self.tmp))}",
                "socket=${_LAMBDA_TELEMETRY_LOG_FD_PROVIDER_SOCKET-}",
                "export MANAGED_LOG=${socket%/*} MANAGED_LOG_NAME=${socket##*/}",
                '[ -n "$MANAGED_LOG" ] || MANAGED_LOG=$MANAGED_TMP',
                f"exec unshare --mount --propagation private sh {shlex.quote(str(script))}",
            ]
        else:
            lines += [*exports, f"cd {shlex.quote(str(task))}", f"exec {bootstrap}"]
        launcher = self.folder / "bin" / os.urandom(4).hex() / name
        launcher.parent.mkdir()
        launcher.write_text("\n".join([*lines, ""]))
        launcher.chmod(0o755)
        return launcher

    def _mounts(self) -> Sequence[str]:
        return [f"mount --bind {shlex.quote(str(source))} /mnt/runtime/{name}" for name, source in packages().items()]


@cache
def base_prefix() -> str:
    """The interpreter's own folder, in which nothing of the tests' is installed."""
    return sys.base_prefix


@cache
def packages() -> dict[str, Path]:
    """What the runtime brings, each with where it is here."""
    found = {}
    for name in (*_RUNTIME, *_SDK):
        spec = find_spec(name)
        if spec is not None and spec.origin is not None:
            source = Path(spec.origin)
            found[source.name if source.name != "__init__.py" else name] = (
                source.parent if source.name == "__init__.py" else source
            )
    return found


@cache
def why_no_mounts() -> str | None:
    """Why places can't be mounted here; None if they can."""
    if os.geteuid() != 0:
        return "only root may mount"
    if shutil.which("unshare") is None or shutil.which("setpriv") is None:
        return "there is no unshare or no setpriv (util-linux)"
    tried = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "mount", "-t", "tmpfs", "tmpfs", "/mnt"],
        capture_output=True,
        check=False,
    )
    return None if tried.returncode == 0 else "mounting is not allowed here"
