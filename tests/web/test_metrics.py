"""The admin listener over real sockets; prometheus_client's own parsers read what it writes."""

from collections.abc import Callable
from typing import NamedTuple

import aiohttp
import msgspec
import pytest
import uvloop
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import parser

from fastmta import metrics
from fastmta.config import Endpoint
from fastmta.metrics import Sample
from fastmta.server.http import HttpServer
from fastmta.web.metrics import Health, admin_app, chunks
from fastmta.web.totals import Totals

ONE = [
    Sample("counter", "fastmta_messages_total", "Messages", (), [((), (3,))]),
    Sample("gauge", "fastmta_queue_size", "Envelopes", (), [((), (10,))]),
    Sample("gauge", "fastmta_queue_oldest_seconds", "Age", (), [((), (60,))], "max"),
    Sample("gauge", "fastmta_disk_free_bytes", "Disk", (), [((), (7,))], "min"),
    Sample(
        "histogram",
        "fastmta_commit_seconds",
        "Commits",
        (),
        [((), (1.5, 2, 0, 1))],
        bounds=(0.5, 1.0),
    ),
    Sample(
        "counter",
        "fastmta_by_kind_total",
        "Kinds",
        ("kind",),
        [(("spam",), (1,)), (("full",), (2,))],
    ),
    Sample("gauge", "fastmta_slow", "Slow", ("path", "why"), [(("a>b", 'say "slow"'), (4,))]),
]
TWO = [
    Sample("counter", "fastmta_messages_total", "Messages", (), [((), (4,))]),
    Sample("gauge", "fastmta_queue_size", "Envelopes", (), [((), (1,))]),
    Sample("gauge", "fastmta_queue_oldest_seconds", "Age", (), [((), (90,))], "max"),
    Sample("gauge", "fastmta_disk_free_bytes", "Disk", (), [((), (9,))], "min"),
    Sample(
        "histogram",
        "fastmta_commit_seconds",
        "Commits",
        (),
        [((), (0.25, 1, 1, 0))],
        bounds=(0.5, 1.0),
    ),
    Sample(
        "counter",
        "fastmta_by_kind_total",
        "Kinds",
        ("kind",),
        [(("spam",), (0,)), (("full",), (4,))],
    ),
    Sample("counter", "fastmta_late_total", "Only one worker has it", (), [((), (1,))]),
    Sample("gauge", "fastmta_slow", "Slow", ("path", "why"), [(("c", "d"), (0.5,))]),
]


def together(workers: list[list[Sample]]) -> list[Sample]:
    totals = Totals()
    for number, samples in enumerate(workers):
        totals.take(number, samples)
    return list(totals.samples())


class Answer(NamedTuple):
    status: int
    content_type: str
    text: str


def get(
    path: str,
    workers: list[list[Sample]],
    accept: str = "",
    health: Health | None = None,
) -> Answer:
    async def collect() -> list[Sample]:
        return together(workers)

    async def ask() -> Health:
        return health or Health(len(workers), len(workers))

    async def run() -> Answer:
        server = HttpServer(admin_app(collect, ask))
        try:
            endpoint = await server.listen(Endpoint("127.0.0.1", 0))
            async with (
                aiohttp.ClientSession(f"http://{endpoint}") as session,
                session.get(path, headers={"Accept": accept}) as response,
            ):
                content_type = response.headers["Content-Type"]
                return Answer(response.status, content_type, await response.text())
        finally:
            await server.close()

    return uvloop.run(run())


def values(text: str, parse: Callable[[str], object]) -> dict[str, float]:
    return {
        sample.name + "".join(sample.labels.values()): sample.value
        for family in parse(text)  # type: ignore[attr-defined]
        for sample in family.samples
    }


SUMMED = {
    "fastmta_messages_total": 7,
    "fastmta_queue_size": 11,
    "fastmta_queue_oldest_seconds": 90,
    "fastmta_disk_free_bytes": 7,
    "fastmta_commit_seconds_bucket0.5": 3,
    "fastmta_commit_seconds_bucket1.0": 4,
    "fastmta_commit_seconds_bucket+Inf": 5,
    "fastmta_commit_seconds_count": 5,
    "fastmta_commit_seconds_sum": 1.75,
    "fastmta_by_kind_totalspam": 1,
    "fastmta_by_kind_totalfull": 6,
    "fastmta_late_total": 1,
    'fastmta_slowa>bsay "slow"': 4,
    "fastmta_slowcd": 0.5,
}


def test_all_workers_together_in_the_plain_format() -> None:
    answer = get("/metrics", [ONE, TWO])
    assert answer.status == 200
    assert answer.content_type.startswith("text/plain; version=0.0.4")
    assert values(answer.text, parser.text_string_to_metric_families) == SUMMED
    assert "# HELP fastmta_messages_total Messages\n# TYPE fastmta_messages_total counter" in (
        answer.text
    )


@pytest.mark.parametrize(
    "accept", ["*/*", "application/openmetrics-text; version=x", "text/plain; version=;;=", ",;,"]
)
def test_any_accept_header_gets_an_answer(accept: str) -> None:
    assert get("/metrics", [ONE], accept).status == 200


def test_no_worker_no_metrics() -> None:
    assert get("/metrics", []).text == ""


@pytest.mark.parametrize(
    ("ready", "code", "status"), [(2, 200, "ok"), (1, 200, "degraded"), (0, 503, "failing")]
)
def test_health(ready: int, code: int, status: str) -> None:
    missing = tuple(range(ready, 2))
    answer = get("/healthz", [], health=Health(2, ready, missing))
    assert (answer.status, answer.content_type) == (code, "application/json")
    expected = {"status": status, "workers": 2, "ready": ready, "missing": list(missing)}
    assert msgspec.json.decode(answer.text) == expected


@pytest.mark.parametrize("path", ["/", "/metrics/x"])
def test_nothing_else_is_there(path: str) -> None:
    assert get(path, [ONE]).status == 404


def test_one_server_on_two_endpoints_and_an_error_for_one_in_use() -> None:
    async def run() -> None:
        server = HttpServer(web.Application())
        try:
            first = await server.listen(Endpoint("127.0.0.1", 0))
            second = await server.listen(Endpoint("127.0.0.1", 0))
            assert first.port != second.port
            with pytest.raises(OSError, match="in use"):
                await server.listen(first)
        finally:
            await server.close()

    uvloop.run(run())


samples = st.lists(st.sampled_from([*ONE, *TWO]), unique_by=lambda sample: sample.name)


@given(st.lists(samples, max_size=4))
def test_combining_in_any_order_is_the_same(workers: list[list[Sample]]) -> None:
    forward = {sample.name: dict(sample.rows) for sample in together(workers)}
    backward = {sample.name: dict(sample.rows) for sample in together(workers[::-1])}
    assert forward == backward


def test_a_declared_metric_comes_out_as_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_declared", [])
    received = metrics.counter("a_total", "A")
    kinds = metrics.counters("k_total", "K", "kind", ("spam", "full"))
    size, age = metrics.gauge("b", "B"), metrics.gauge("c_seconds", "C", "max")
    metrics.gauge("absent", "Not of this process", "min")
    slow, nobody = metrics.gauges("e", "E", ("path",)), metrics.gauges("n", "N", ("path",))
    seconds = metrics.histogram("d_seconds", "D", (0.5, 1.0))
    sites = metrics.ranked("s_total", "S", "site", ("delivered", "failed"))
    received.value += 2
    kinds.count("full")
    size.value = 3
    age.read = lambda: 4.0
    slow.read = lambda: [(("x",), 1.5)]
    assert nobody.read is None
    for value in (0.5, 0.75, 7.0):
        seconds.observe(value)
    sites.add("mx.test", (2, 0))
    assert [(each.kind, each.name, each.rows) for each in metrics.snapshot()] == [
        ("counter", "a_total", [((), (2,))]),
        ("counter", "k_total", [(("spam",), (0,)), (("full",), (1,))]),
        ("gauge", "b", [((), (3,))]),
        ("gauge", "c_seconds", [((), (4,))]),
        ("gauge", "absent", []),
        ("gauge", "e", [(("x",), (1.5,))]),
        ("gauge", "n", []),
        ("histogram", "d_seconds", [((), (8.25, 1, 1, 1))]),
        (
            "counter",
            "s_total",
            [
                (("other", "delivered"), (0,)),
                (("other", "failed"), (0,)),
                (("mx.test", "delivered"), (2,)),
                (("mx.test", "failed"), (0,)),
            ],
        ),
    ]


def test_samples_survive_the_way_from_a_worker() -> None:
    encoded = msgspec.msgpack.encode([*ONE, *TWO])
    assert msgspec.msgpack.decode(encoded, type=list[Sample]) == [*ONE, *TWO]


def test_the_text_goes_out_in_pieces() -> None:
    rows = [((f"{n:06}",), (n,)) for n in range(10_000)]
    many = [Sample("gauge", f"fastmta_{n}", "Many", ("name",), rows) for n in range(3)]
    pieces = list(chunks(many))
    assert len(pieces) == 3
    assert len(list(parser.text_string_to_metric_families(b"".join(pieces).decode()))) == 3
