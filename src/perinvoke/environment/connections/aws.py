"""The boto3 clients and resources that a worker keeps: one of each configuration, whoever asks, however often.

A configuration is the service, every argument, and what the environment variables say about who calls and where to: a client
made while a handler had another account's credentials in its environment is never handed to another invocation. An argument
counts by its value: two botocore ``Config`` with the same options are one. What can't be compared counts by identity.

Other ``AWS_*`` variables and files are read when a client is made, as boto3 does it.
"""

from __future__ import annotations

import functools
import itertools
import os
import threading

from boto3.resources.base import ServiceResource
from boto3.session import Session
from botocore.config import Config

from perinvoke.environment.connections.aws_deadline import bind, bind_session, is_client
from perinvoke.errors import FixConfiguration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence
    from typing import Any

    from perinvoke.environment.connections.aws_deadline import Begin

# Who has more configurations (temporary credentials as arguments, say) has the least recently used made anew. Arbitrary.
_MAX_KEPT = 64

# Of boto3's transfers of large objects, by default; and of the pools of threads that Python makes by default.
_TRANSFER_THREADS = 10
_MAX_POOL_THREADS = 32
_POOL_THREADS_BEYOND_CPUS = 4
# Where invocations share a process. A sixteenth of the file descriptors that the platform gives an execution environment.
_SHARED_PROCESS_CONNECTIONS = 256

# Who calls, and where to. The environment's own dictionary has bytes.
_IDENTITY = (
    b"AWS_ACCESS_KEY_ID",
    b"AWS_SECRET_ACCESS_KEY",
    b"AWS_SESSION_TOKEN",
    b"AWS_PROFILE",
    b"AWS_ROLE_ARN",
    b"AWS_REGION",
    b"AWS_DEFAULT_REGION",
    b"AWS_ENDPOINT_URL",
)
# Those, and the variable of a service's own endpoint, such as AWS_ENDPOINT_URL_DYNAMODB. A service that goes by two words in its
# variable and by one in boto3 isn't found so; then a change of that variable goes unnoticed.
_of_service: dict[str, tuple[bytes, ...]] = {}


class Clients:
    """The clients and resources of one process; lives as long as the process. Thread-safe.

    Args:
        begin: tells how long a call may take that begins now.
        kept_connections: how many connections a client keeps open to one host; more are opened when needed, and closed after use.
        prepares: what is called with every client that is made, by service; may grow.
    """

    def __init__(
        self, begin: Begin, *, kept_connections: int, prepares: Sequence[tuple[str, Callable[[Any], object]]] = ()
    ) -> None:
        self._begin = begin
        self._prepares = prepares
        self._kept_connections = kept_connections
        self._clients: dict[Hashable, _Kept] = {}
        self._resources: dict[Hashable, _Kept] = {}
        self._turns = itertools.count()
        # What is made is made once, and boto3's sessions don't take two threads. Reentrant: botocore calls whom a handler
        # has registered for the making of a client.
        self._making = threading.RLock()
        self._session: tuple[Hashable, Session] | None = None

    def client(self, service_name: str, options: dict[str, Any]) -> Any:
        """The client; made if there is none. What boto3 raises comes through unchanged, and is not remembered."""
        who = _identity(service_name)
        key = (service_name, who, _frozen(options)) if options else (service_name, who)
        kept = self._clients.get(key)
        if kept is None:
            make = functools.partial(self._make_client, who, service_name, options)
            kept = self._kept(self._clients, key, make)
        kept.turn = next(self._turns)
        return kept.made

    def resource(self, service_name: str, options: dict[str, Any]) -> Any:
        """This thread's resource; made if there is none. The connections are those of the other threads' too."""
        who = _identity(service_name)
        key = (service_name, who, _frozen(options))
        kept = self._resources.get(key)
        make = functools.partial(self._make_resource, who, service_name, options)
        if kept is None:
            kept = self._kept(self._resources, key, make)
        kept.turn = next(self._turns)
        mine = kept.of_thread.made
        if mine is None:
            with self._making:
                mine = kept.of_thread.made = _sibling(kept.made, make)
        return mine

    def _kept(self, all_kept: dict[Hashable, _Kept], key: Hashable, make: Callable[[], Any]) -> _Kept:
        with self._making:
            kept = all_kept.get(key)
            if kept is None:
                if len(all_kept) >= _MAX_KEPT:
                    # Not closed: whoever uses it goes on, and its connections end with it.
                    del all_kept[min(all_kept, key=lambda other: all_kept[other].turn)]
                kept = _Kept(make(), next(self._turns))
                all_kept[key] = kept
            return kept

    def _make_client(self, who: Hashable, service_name: str, options: Mapping[str, Any]) -> Any:
        session, arguments = self._arguments(who, options)
        client = session.client(service_name, **arguments)
        self._bind(service_name, client)
        return client

    def _make_resource(self, who: Hashable, service_name: str, options: Mapping[str, Any]) -> Any:
        session, arguments = self._arguments(who, options)
        resource = session.resource(service_name, **arguments)
        self._bind(service_name, resource.meta.client)
        return resource

    def _bind(self, service_name: str, client: Any) -> None:
        bind(client, self._begin)
        for service, prepare in self._prepares:
            if service == service_name:
                prepare(client)

    def prepare(self, service_name: str, prepare: Callable[[Any], object]) -> None:
        """Have it called with every client of the service that is there already, but for those of other threads' resources."""
        with self._making:
            for key, kept in [*self._clients.items(), *self._resources.items()]:
                if isinstance(key, tuple) and key[0] == service_name:
                    for made in (kept.made, kept.of_thread.made):
                        if made is not None:
                            prepare(client_of(made))

    def _arguments(self, who: Hashable, options: Mapping[str, Any]) -> tuple[Session, dict[str, Any]]:
        arguments = dict(options)
        session, config = arguments.pop("session", None), arguments.pop("config", None)
        if session is not None and not isinstance(session, Session):
            raise FixConfiguration(f"session is {session!r}; it must be a boto3.Session, or be left out for perinvoke's own")
        if config is not None and not isinstance(config, Config):
            raise FixConfiguration(f"config is {config!r}; it must be a botocore.config.Config, such as Config(read_timeout=5)")
        session = session or self._own_session(who)
        arguments["config"] = _with_defaults(config, session, self._kept_connections)
        return session, arguments

    def _own_session(self, who: Hashable) -> Session:
        """Not boto3's default session: others may be making a client with that, in another thread."""
        if self._session is None or self._session[0] != who:
            session = Session()
            bind_session(session.events, self._begin)  # so that the clients which fetch credentials are bound, too
            self._session = (who, session)
        return self._session[1]


class _OfThread(threading.local):
    made: Any = None


class _Kept:
    """One client or resource, and when it was last asked for; lives until it is the least recently used."""

    __slots__ = ("made", "of_thread", "turn")

    def __init__(self, made: Any, turn: int) -> None:
        self.made = made
        self.turn = turn
        self.of_thread = _OfThread()


class _ById:
    """Stands for something that can't be compared, and keeps it, so that its identity isn't given to something else."""

    __slots__ = ("_it",)

    def __init__(self, it: object) -> None:
        self._it = it

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ById) and self._it is other._it

    def __hash__(self) -> int:
        return id(self._it)


def kept_connections(*, shared_process: bool, cpus: int) -> int:
    """How many connections to keep open to a host: as many as threads may be using a client at once. Pure.

    They are opened as they are needed, so a number that is too large costs nothing; one that is too small costs a new
    connection, and a warning of urllib3's, each time. An invocation has its own thread, and perhaps a transfer's or a pool's.
    """
    if shared_process:
        return _SHARED_PROCESS_CONNECTIONS
    return 1 + max(_TRANSFER_THREADS, min(_MAX_POOL_THREADS, cpus + _POOL_THREADS_BEYOND_CPUS))


def client_of(target: object) -> Any:
    """The client that a client or a resource is or has; None for something else."""
    if isinstance(target, ServiceResource):
        return target.meta.client
    return target if is_client(target) else None


def events_of(target: object) -> Any:
    """The events of a session of boto3's; None for something else."""
    return target.events if isinstance(target, Session) else None


def _sibling(resource: Any, make: Callable[[], Any]) -> Any:
    """Another thread's resource like this one, over the same connections.

    Making DynamoDB's adds to its client's events what translates items, and that keeps a count of its own while it works. Two
    threads over one client would get each other's placeholders, so there each has a client.
    """
    kind = type(resource)
    if kind.__init__ is ServiceResource.__init__:
        return kind(client=resource.meta.client)
    sibling = make()
    endpoint, theirs = (getattr(of.meta.client, "_endpoint", None) for of in (sibling, resource))
    connections = getattr(theirs, "http_session", None)
    if endpoint is not None and connections is not None:
        endpoint.http_session = connections
    return sibling


def _with_defaults(config: Config | None, session: Session, kept_connections: int) -> Config:
    """The caller's ``Config``, with perinvoke's values where nobody has said anything: not in it, a variable or a profile."""
    core = session._session  # noqa: SLF001  # botocore's session, which has what boto3's hides
    of_session = core.get_default_client_config()
    options: dict[str, Any] = {**_options(of_session), **_options(config)}
    options.setdefault("max_pool_connections", kept_connections)
    retries = dict(options.get("retries") or {})  # a copy: botocore writes into it
    if "AWS_RETRY_MODE" not in os.environ and "retry_mode" not in core.get_scoped_config():
        retries.setdefault("mode", "standard")
    options["retries"] = retries
    return Config(**options)


def _options(config: Config | None) -> dict[str, Any]:
    """What somebody has said in a ``Config``: to its constructor, or by setting an attribute later."""
    if config is None:
        return {}
    given: dict[str, Any] = config._user_provided_options  # noqa: SLF001  # what tells a value that was given from a default
    values = vars(config)
    changed = {
        name: values[name] for name, default in Config.OPTION_DEFAULTS.items() if name in values and values[name] != default
    }
    return {**given, **changed}


def _identity(service_name: str) -> tuple[Any, ...]:
    variables = _of_service.get(service_name)
    if variables is None:
        own = f"AWS_ENDPOINT_URL_{service_name.upper().replace('-', '_')}"
        variables = _of_service[service_name] = (*_IDENTITY, os.fsencode(own))
    environ = getattr(os.environ, "_data", os.environb)  # the dictionary behind: the mapping takes ten times as long
    return tuple(map(environ.get, variables))


def _frozen(value: Any) -> Hashable:
    """Something that is equal when two configurations are."""
    if isinstance(value, Config):
        return type(value), _frozen(vars(value))
    if isinstance(value, dict):
        return frozenset([(name, _frozen(its)) for name, its in value.items()])
    if isinstance(value, list | tuple):
        return tuple(map(_frozen, value))
    if isinstance(value, set):
        return frozenset(value)
    try:
        hash(value)
    except TypeError:
        return _ById(value)
    return value  # type: ignore[no-any-return]  # hashable, as was found
