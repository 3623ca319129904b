"""The admin listener: what all workers counted, in Prometheus's format, and whether they live.

Writing the text takes milliseconds: this runs in the supervisor's process, never in a worker's.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator
from itertools import accumulate

import msgspec
from aiohttp import web
from msgspec import Struct, structs
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from fastmta.metrics import Sample

# Not prometheus_client's own choice: it fails where a version in Accept is no number.
_Format = tuple[Callable[[Collector], bytes], str]
_PLAIN: _Format = (generate_latest, "text/plain; version=0.0.4; charset=utf-8")
_OPEN_METRICS: _Format = (
    openmetrics.generate_latest,
    "application/openmetrics-text; version=1.0.0; charset=utf-8",
)


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


Collect = Callable[[], Awaitable[list[list[Sample]]]]  # the samples of each worker
Ask = Callable[[], Awaitable[Health]]


def admin_app(collect: Collect, health: Ask) -> web.Application:
    """`GET /metrics` sums what `collect` gives; `GET /healthz` is 503 if no worker answers."""

    async def metrics(request: web.Request) -> web.Response:
        collected = Collected(combine(await collect()))
        accept = request.headers.get("Accept", "")
        write, content_type = _OPEN_METRICS if "openmetrics-text" in accept else _PLAIN
        return web.Response(body=write(collected), headers={"Content-Type": content_type})

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


def combine(workers: Iterable[list[Sample]]) -> list[Sample]:
    """One sample for each name, in the order in which they were first seen."""
    total: dict[str, Sample] = {}
    for sample in (sample for samples in workers for sample in samples):
        seen = total.get(sample.name)
        total[sample.name] = sample if seen is None else _add(seen, sample)
    return list(total.values())


def _add(one: Sample, other: Sample) -> Sample:
    if one.combine == "max":
        return one if one.value >= other.value else other
    counts = tuple(map(sum, zip(one.counts, other.counts, strict=True)))
    value, rows = one.value + other.value, [*one.rows, *other.rows]
    return structs.replace(one, value=value, counts=counts, rows=rows)


class Collected(Collector):
    """Samples as prometheus_client writes them."""

    def __init__(self, samples: list[Sample]) -> None:
        self._samples = samples

    def collect(self) -> Iterator[Metric]:
        return map(_family, self._samples)


def _family(sample: Sample) -> Metric:
    if sample.label:
        family = CounterMetricFamily(sample.name, sample.help, labels=[sample.label])
        for value, count in zip(sample.values, sample.counts, strict=True):
            family.add_metric([value], count)
        return family
    if sample.labels:
        gauges = GaugeMetricFamily(sample.name, sample.help, labels=sample.labels)
        for values, number in sample.rows:
            gauges.add_metric(values, number)
        return gauges
    if sample.kind == "counter":
        return CounterMetricFamily(sample.name, sample.help, value=sample.value)
    if sample.kind == "gauge":
        return GaugeMetricFamily(sample.name, sample.help, value=sample.value)
    bounds = [*map(floatToGoString, sample.bounds), "+Inf"]
    buckets = list(zip(bounds, accumulate(sample.counts), strict=True))
    return HistogramMetricFamily(sample.name, sample.help, buckets, sample.value)
