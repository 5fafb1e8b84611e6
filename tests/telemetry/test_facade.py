"""Spans, stages and figures as the program sees them: with nobody to tell, and with the SDK behind them."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from neve import telemetry
from neve.castore.directories.memory import MemoryDirectoryService
from neve.castore.directory import Directory
from neve.errors import NotFound
from neve.library import open_store
from neve.telemetry import CLIENT, SERVER
from neve.telemetry.otlp import OtelTracer
from neve.telemetry.services import traced

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{SPAN}-01"


class Told:
    """The spans that have ended."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self._exporter = exporter

    def names(self) -> list[str]:
        return [span.name for span in self._exporter.get_finished_spans()]

    def __getitem__(self, name: str) -> ReadableSpan:
        (found,) = [span for span in self._exporter.get_finished_spans() if span.name == name]
        return found

    def attributes(self, name: str) -> dict[str, object]:
        return dict(self[name].attributes or {})

    def is_child(self, name: str, parent: str) -> bool:
        inner, outer = self[name], self[parent].context
        return inner.parent is not None and outer is not None and inner.parent.span_id == outer.span_id


@pytest.fixture
def told() -> Iterator[Told]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    telemetry.trace_with(OtelTracer(provider, "1"))
    try:
        yield Told(exporter)
    finally:
        telemetry.trace_with(None)


def test_nobody_is_told() -> None:
    assert not telemetry.is_tracing()
    with telemetry.span("a", {"b": 1}, CLIENT) as span:
        span.set("c", 1)
        span.fail("d", "e")
        assert span.headers() == ()
        assert span.run(max, 1, 2) == 2
        span.end()
    with pytest.raises(KeyError), telemetry.span("a"):
        raise KeyError
    assert telemetry.received([("traceparent", TRACEPARENT)]) is None
    assert telemetry.ids() is None
    assert telemetry.carried(max) is max
    stage = telemetry.stage("s")
    with stage, stage:
        stage.set("x", 1)
    stage.end()
    assert not telemetry.is_counting()
    telemetry.count("blobs_new")
    telemetry.count_found("blobs", 1, 2)


def test_nothing_is_loaded_for_nobody() -> None:
    code = "import sys, neve.telemetry, neve.telemetry.services; print('opentelemetry' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code]) == b"False\n"


def test_spans_are_in_each_other(told: Told) -> None:
    with telemetry.span("outer", {"size": 3}) as outer:
        ids = telemetry.ids()
        with telemetry.span("inner", kind=SERVER) as inner:
            inner.set("found", True)
        assert telemetry.ids() == ids
        outer.end()
    assert telemetry.ids() is None
    assert told.is_child("inner", "outer")
    assert told.attributes("outer") == {"size": 3}
    assert told.attributes("inner") == {"found": True}
    assert told["inner"].kind.name == "SERVER"
    assert told["inner"].status.is_unset


def test_an_exception_fails_a_span_and_what_it_says_stays_here(told: Told) -> None:
    with pytest.raises(NotFound), telemetry.span("a"):
        raise NotFound("the secret is x")
    assert told.attributes("a") == {"error.type": "NotFound"}
    assert not told["a"].status.is_ok
    assert not told["a"].events
    assert "secret" not in told["a"].to_json()


def test_headers_lead_from_one_process_to_the_next(told: Told) -> None:
    with telemetry.span("client", kind=CLIENT) as client:
        headers = client.headers()
    ((name, value),) = headers
    assert name == "traceparent"
    context = told["client"].context
    assert context is not None
    assert value.startswith(f"00-{context.trace_id:032x}-{context.span_id:016x}-")
    parent = telemetry.received([(b"host", b"x"), (b"TraceParent", value.encode())])
    with telemetry.span("server", parent=parent):
        pass
    assert told.is_child("server", "client")


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("host", "x")],
        [("traceparent", "")],
        [("traceparent", "nonsense")],
        [(b"traceparent", b"\xff\xfe")],
        [("traceparent", f"00-{'0' * 32}-{SPAN}-01")],
        [("traceparent", f"ff-{TRACE}-{SPAN}-01")],
        [("traceparent", f"{TRACEPARENT}-{'x' * 100_000}")],
        [("tracestate", "a=b")],
    ],
)
def test_headers_that_lead_nowhere(told: Told, headers: list[tuple[str, str]]) -> None:
    with telemetry.span("server", parent=telemetry.received(headers)):
        pass
    assert told["server"].parent is None


def test_who_is_not_followed_is_not_told(told: Told) -> None:
    """The trace is one that somebody has decided not to look at."""
    parent = telemetry.received([("traceparent", f"00-{TRACE}-{SPAN}-00")])
    with telemetry.span("server", parent=parent) as span:
        assert span.headers()[0][1].startswith(f"00-{TRACE}-")
        assert span.headers()[0][1].endswith("-00")
    assert told.names() == []


def test_another_thread_goes_on_where_it_was_sent_from(told: Told) -> None:
    def work() -> None:
        with telemetry.span("work"):
            pass

    with ThreadPoolExecutor(1) as pool:
        with telemetry.span("outer"):
            pool.submit(telemetry.carried(work)).result()
        before = telemetry.ids()
        assert pool.submit(telemetry.ids).result() is before is None
    assert told.is_child("work", "outer")


def test_tasks_do_not_see_each_other(told: Told) -> None:
    async def task(name: str, other: asyncio.Event, mine: asyncio.Event) -> None:
        with telemetry.span(name):
            mine.set()
            await other.wait()
            with telemetry.span(f"{name}-inner"):
                pass

    async def both() -> None:
        a, b = asyncio.Event(), asyncio.Event()
        await asyncio.gather(task("a", a, b), task("b", b, a))

    asyncio.run(both())
    assert told.is_child("a-inner", "a")
    assert told.is_child("b-inner", "b")


def test_pieces_of_a_stage_are_added_up(told: Told) -> None:
    stage = telemetry.stage("stage", {"of": "it"})
    together = threading.Barrier(4)

    def work() -> None:
        for _ in range(5):
            with stage:
                together.wait(60)
                with stage:
                    pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with pytest.raises(KeyError), stage:
        raise KeyError
    stage.end()
    stage.end()
    attributes = told.attributes("stage")
    assert attributes.pop("neve.busy_seconds") > 0  # type: ignore[operator]
    assert attributes == {"of": "it", "neve.pieces": 21}


def test_figures_are_told() -> None:
    found: list[tuple[str, float]] = []
    telemetry.count_with(lambda figure, amount: found.append((figure, amount)))
    try:
        assert telemetry.is_counting()
        telemetry.count("blobs_new", 3)
        telemetry.count_found("directories", 1, 0)
    finally:
        telemetry.count_with(None)
    assert found == [("blobs_new", 3), ("directories_hit", 1), ("directories_missed", 0)]
    assert {figure for figure, _ in found} <= set(telemetry.FIGURES)


def test_calls_of_a_backend(told: Told) -> None:
    with open_store("memory://") as store:
        blobs = store.blobs
        digests = blobs.put_many([b"a", b"b"])
        assert blobs.missing([*digests, bytes(32)]) == [bytes(32)]
        assert list(blobs.read_many(digests)) == [b"a", b"b"]
        answers = blobs.read_many(digests)
        assert next(answers) == b"a"
        assert telemetry.ids() is None
        answers.close()  # type: ignore[attr-defined]
        with pytest.raises(NotFound):
            blobs.read(bytes(32))
        with blobs.open_write() as writer:
            writer.write(b"long")
            writer.write(b"er")
            writer.close()
    # What they call of their own is no call of anybody's.
    assert told.names().count("blobs.read_many") == 2
    assert sorted({*told.names()}) == [
        *("blobs.missing", "blobs.open_write", "blobs.open_write.commit"),
        *("blobs.put_many", "blobs.read", "blobs.read_many"),
    ]
    assert told.attributes("blobs.missing") == {"neve.scheme": "memory"}
    assert told.attributes("blobs.read")["error.type"] == "NotFound"
    assert told.attributes("blobs.open_write")["neve.pieces"] == 2


def test_a_backend_that_answers_before_it_is_asked_for_items(told: Told) -> None:
    """What a method does when it is called belongs to its span: calls of its own, and a failure."""

    class Eager(MemoryDirectoryService):
        def get_recursive(self, digest: bytes) -> Iterator[Directory]:
            if digest == bytes(32):
                raise NotFound("nothing")
            return super().get_recursive(digest)

    directories = traced(Eager(), "directories", "memory")
    digest = directories.put(Directory())
    assert list(directories.get_recursive_encoded(digest)) == [Directory().encode()]
    with pytest.raises(NotFound):
        list(directories.get_recursive(bytes(32)))
    assert told.names() == [
        "directories.put",
        "directories.get_recursive_encoded",
        "directories.get_recursive",
    ]
    assert told.attributes("directories.get_recursive")["error.type"] == "NotFound"


def test_an_answer_that_nobody_wants_any_more_leaves_the_context_alone(told: Told) -> None:
    """The garbage collector may end it at any moment."""
    variable = contextvars.ContextVar("variable", default="")

    class Cleaning(MemoryDirectoryService):
        def get_recursive(self, digest: bytes) -> Iterator[Directory]:
            try:
                yield from super().get_recursive(digest)
            finally:
                variable.set("cleaned")
                cleaned.append(variable.get())

    cleaned: list[str] = []
    directories = traced(Cleaning(), "directories", "memory")
    digest = directories.put(Directory())
    variable.set("ours")
    items = directories.get_recursive(digest)
    assert next(items) == Directory()
    assert isinstance(items, Generator)
    items.close()
    assert (cleaned, variable.get()) == (["cleaned"], "ours")
    assert told.names() == ["directories.put", "directories.get_recursive"]
    assert told.attributes("directories.get_recursive")["neve.items"] == 1


def test_what_is_traced_is_called_as_before(told: Told) -> None:
    """Also with arguments by their names."""
    with open_store("memory://") as store, store.blobs.batch() as batch:
        digests = batch.put_many(blobs=[b"named"])
        batch.commit()
        assert store.blobs.missing(digests=digests) == []
        assert list(store.blobs.read_many(digests=digests)) == [b"named"]
    assert told.attributes("blobs.batch")["neve.pieces"] == 1


def test_a_backend_that_was_opened_before_stays_as_it_is(told: Told) -> None:
    telemetry.trace_with(None)
    with open_store("memory://") as store:
        assert "missing" not in vars(store.blobs)
        store.blobs.missing([bytes(32)])
    assert told.names() == []


def test_nothing_is_left_of_what_is_closed(told: Told) -> None:
    """Neither of a service nor of an upload: both may hold megabytes, and connections."""
    gc.disable()
    try:
        with open_store("memory://") as store:
            batch = store.blobs.batch()
            batch.put_many([b"x"])
            service, upload = weakref.ref(store.blobs), weakref.ref(batch)
            batch.close()
            batch.close()
            del batch
        store.close()
        assert vars(store.blobs).keys().isdisjoint({"missing", "read_many", "batch", "close"})
        del store
        assert (service(), upload()) == (None, None)
    finally:
        gc.enable()
    assert "blobs.batch" in told.names()
