"""Spans for the calls of a backend, whatever kind of service it is.

A service is not wrapped, since it is known by its class in some places: the methods of this one object are
replaced. That is done when it is opened, and only if somebody is told of spans; else it stays as it is.
"""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

from neve import telemetry
from neve.telemetry import Timed

T = TypeVar("T")

_CALLS = (
    *("has", "missing", "missing_blobs", "chunks", "open_read", "read", "put_many", "get", "get_many"),
    *("describe", "put", "add_signatures", "referrers", "list", "names", "delete_many"),
    *("freshen", "list_with_ages", "list_chunks_with_ages", "delete_chunks"),
)
_ANSWERS = ("read_many", "read_bundles", "stream", "get_recursive", "get_recursive_encoded")
"""What gives a generator: the span is over when that is."""

_UPLOADS = ("batch", "put_multiple", "open_write")
"""What gives something that takes many pieces."""
_PIECES = ("put_many", "put_bundle", "put", "put_built", "write", "write_bundle", "keep_many")
_DURABLE = {"batch": ("commit",), "put_multiple": ("close",), "open_write": ("close",)}
"""What makes those pieces durable."""
_ENDS = ("close", "abandon")

_inside: contextvars.ContextVar[object] = contextvars.ContextVar("neve_inside", default=None)
"""The service whose call is being made: what that calls of its own is no call of anybody's."""

_END: Any = object()


def traced(service: T, what: str, scheme: str) -> T:
    """``service``, which was opened for ``scheme``; its spans are called ``what.method``."""
    if telemetry.is_tracing():
        attributes = {"neve.scheme": scheme}
        for names, make in ((_CALLS, _call), (_ANSWERS, _answer), (_UPLOADS, _upload)):
            for name in names:
                if hasattr(service, name):
                    method = getattr(service, name)
                    setattr(service, name, make(service, method, f"{what}.{name}", attributes))
        if hasattr(service, "close"):
            service.close = _closing(service, service.close)
    return service


def _closing(service: object, close: Callable[[], None]) -> Any:
    def call() -> None:
        try:
            close()
        finally:
            _restore(service, (*_CALLS, *_ANSWERS, *_UPLOADS, "close"))

    return call


def _restore(traced: object, names: Iterable[str]) -> None:
    """Makes it what it was: else it would refer to itself, and what it holds would stay until somebody looks
    for such cycles."""
    for name in names:
        vars(traced).pop(name, None)


def _call(service: object, method: Callable[..., Any], name: str, attributes: dict[str, str]) -> Any:
    @functools.wraps(method)
    def call(*arguments: Any, **named: Any) -> Any:
        if _inside.get() is service:
            return method(*arguments, **named)
        token = _inside.set(service)
        try:
            with telemetry.span(name, attributes):
                return method(*arguments, **named)
        finally:
            _inside.reset(token)

    return call


def _begun(method: Callable[..., Any], arguments: Any, named: Any) -> Generator[Any, None, None]:
    # Not before the first item is wanted: some methods do a part of it when they are called.
    yield from method(*arguments, **named)


def _following(service: object, items: Iterator[Any]) -> Any:
    token = _inside.set(service)
    try:
        return next(items, _END)
    finally:
        _inside.reset(token)


def _answer(service: object, method: Callable[..., Any], name: str, attributes: dict[str, str]) -> Any:
    def answered(*arguments: Any, **named: Any) -> Generator[Any, None, None]:
        count = 0
        items = _begun(method, arguments, named)
        span = telemetry.span(name, attributes)

        def end() -> None:
            try:
                items.close()
            finally:
                span.set("neve.items", count)
                span.end()

        try:
            # Not current while nothing is being made: whoever gets an item goes his own way.
            while (item := span.run(_following, service, items)) is not _END:
                count += 1
                yield item
        except GeneratorExit:
            # It may be the garbage collector that says so, and in the middle of a change of this context:
            # Python 3.11 does not survive that another change comes in between.
            contextvars.copy_context().run(end)
            raise
        except BaseException as error:
            span.fail(type(error).__name__)
            end()
            raise
        end()

    @functools.wraps(method)
    def call(*arguments: Any, **named: Any) -> Any:
        if _inside.get() is service:
            return method(*arguments, **named)
        return answered(*arguments, **named)

    return call


def _upload(service: object, method: Callable[..., Any], name: str, attributes: dict[str, str]) -> Any:
    durable = _DURABLE[name.rpartition(".")[2]]

    @functools.wraps(method)
    def call(*arguments: Any, **named: Any) -> Any:
        upload = method(*arguments, **named)
        if _inside.get() is service:
            return upload
        stage = telemetry.stage(name, attributes)
        for each in filter(partial(hasattr, upload), _PIECES):
            setattr(upload, each, _piece(getattr(upload, each), stage))
        for each in durable:
            setattr(upload, each, _call(upload, getattr(upload, each), f"{name}.commit", attributes))
        for each in filter(partial(hasattr, upload), _ENDS):
            setattr(upload, each, _ending(upload, getattr(upload, each), stage))
        return upload

    return call


def _piece(method: Callable[..., Any], stage: Timed) -> Any:
    @functools.wraps(method)
    def call(*arguments: Any, **named: Any) -> Any:
        with stage:
            return method(*arguments, **named)

    return call


def _ending(upload: object, method: Callable[..., Any], stage: Timed) -> Any:
    @functools.wraps(method)
    def call() -> Any:
        try:
            return method()
        finally:
            stage.end()
            _restore(upload, (*_PIECES, *_ENDS, "commit"))

    return call
