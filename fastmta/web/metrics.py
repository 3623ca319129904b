"""The admin listener: what all workers counted, in Prometheus's format, and whether they live.

This runs in the supervisor's process, never in a worker's. The text goes out as it is made.
https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator
from itertools import accumulate

import msgspec
from aiohttp import web
from msgspec import Struct, structs
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from fastmta.metrics import Sample

_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_CHUNK = 64 << 10  # octets


class Health(Struct, frozen=True):
    """How many workers there should be, and how many of them answer."""

    workers: int
    ready: int
    missing: tuple[int, ...] = ()  # the indexes of those that do not

    @property
    def status(self) -> str:
        if not self.ready:
            return "failing"
        return "ok" if self.ready == self.workers else "degraded"


Collect = Callable[[], Awaitable[Iterable[Sample]]]  # one sample for each name
Ask = Callable[[], Awaitable[Health]]


def admin_app(collect: Collect, health: Ask) -> web.Application:
    """`GET /metrics` writes what `collect` gives; `GET /healthz` is 503 if no worker answers."""

    async def metrics(request: web.Request) -> web.StreamResponse:
        samples = await collect()
        response = web.StreamResponse(headers={"Content-Type": _TYPE})
        await response.prepare(request)
        for chunk in chunks(samples):
            await response.write(chunk)
        await response.write_eof()
        return response

    async def healthz(request: web.Request) -> web.Response:
        now = await health()
        return web.Response(
            body=msgspec.json.encode({"status": now.status, **structs.asdict(now)}),
            status=503 if now.status == "failing" else 200,
            content_type="application/json",
        )

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/healthz", healthz)
    return app


def chunks(samples: Iterable[Sample]) -> Iterator[bytes]:
    """The text of these, in pieces."""
    piece = bytearray()
    for sample in samples:
        piece += generate_latest(_One(_family(sample)))
        if len(piece) >= _CHUNK:
            yield bytes(piece)
            piece.clear()
    if piece:
        yield bytes(piece)


class _One(Collector):
    """What prometheus_client writes at a time."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterator[Metric]:
        yield self._family


def _family(sample: Sample) -> Metric:
    name, text, labels = sample.name, sample.help, sample.labels
    if sample.kind == "histogram":
        histogram = HistogramMetricFamily(name, text, labels=labels)
        bounds = [*map(floatToGoString, sample.bounds), "+Inf"]
        for values, (total, *counts) in sample.rows:
            buckets = list(zip(bounds, accumulate(counts), strict=True))
            histogram.add_metric(values, buckets, total)
        return histogram
    make = CounterMetricFamily if sample.kind == "counter" else GaugeMetricFamily
    family = make(name, text, labels=labels)
    for values, (number,) in sample.rows:
        family.add_metric(values, number)
    return family
