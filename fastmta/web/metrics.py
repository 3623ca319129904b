"""The admin listener: what all workers counted, in Prometheus's format, and whether they live.

This runs in the supervisor's process, never in a worker's. The text goes out as it is made.
https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator
from itertools import accumulate

import msgspec
from aiohttp import web
from msgspec import Struct, structs

from fastmta.metrics import Row, Sample

_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_CHUNK = 64 << 10  # characters


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
    lines: list[str] = []
    size = 0
    for sample in samples:
        text = _family(sample)
        lines.append(text)
        size += len(text)
        if size >= _CHUNK:
            yield "".join(lines).encode()
            lines.clear()
            size = 0
    if lines:
        yield "".join(lines).encode()


def _family(sample: Sample) -> str:
    help = sample.help.replace("\\", r"\\").replace("\n", r"\n")
    head = f"# HELP {sample.name} {help}\n# TYPE {sample.name} {sample.kind}\n"
    write = _histogram if sample.kind == "histogram" else _number
    return head + "".join(write(sample, row) for row in sample.rows)


def _number(sample: Sample, row: Row) -> str:
    values, (number,) = row
    return f"{sample.name}{_labels(sample.labels, values)} {float(number)!r}\n"


def _histogram(sample: Sample, row: Row) -> str:
    values, (total, *counts) = row
    name, labels = sample.name, (*sample.labels, "le")
    bounds = [*(repr(float(bound)) for bound in sample.bounds), "+Inf"]
    lines = [
        f"{name}_bucket{_labels(labels, (*values, bound))} {float(count)!r}\n"
        for bound, count in zip(bounds, accumulate(counts), strict=True)
    ]
    plain = _labels(sample.labels, values)
    lines.append(f"{name}_count{plain} {float(sum(counts))!r}\n")
    lines.append(f"{name}_sum{plain} {float(total)!r}\n")
    return "".join(lines)


def _labels(labels: tuple[str, ...], values: tuple[str, ...]) -> str:
    if not labels:
        return ""
    pairs = zip(labels, map(_escaped, values), strict=True)
    return "{" + ",".join(f'{label}="{value}"' for label, value in pairs) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
