"""What the documents say of the program is so."""

import importlib
import json
import pkgutil
import re
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, get_origin

import msgspec
import pytest
from msgspec import NODEFAULT, UNSET, structs

import fastmta
from bench import markdown
from bench.report import Results
from fastmta import metrics
from fastmta.config import Config, Duration, parse
from fastmta.config_reader import Table, table_of
from fastmta.mail.classification import CATEGORIES
from tests.certificates import make_certificate

ROOT = Path(__file__).parent.parent
BENCH = ROOT / "docs" / "bench"
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")), ROOT / "grafana" / "README.md"
]  # fmt: skip
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text()
# Defaults that are a sentence, not a value.
IN_WORDS = {
    "workers": "one for each CPU",
    "source.hostname": "that of the top",
    **{
        f"retry.domain.{name}": "that of `[retry]`"
        for name in ("first", "max_interval", "give_up_after")
    },
    "delivery.ca_file": "the system's",
    "dkim.headers": "see [dkim.md](dkim.md)",
    "bounces.suppress": "`true` where `[suppression]` is set",
    "source.client_certificate": "that of `[delivery]`",
    "source.client_key": "that of `[delivery]`",
    "tls.host.names": "those of the certificate",
    "listener.tls": '`"starttls"` where `[tls]` is set, else `"none"`',
}


def documented() -> dict[str, str]:
    """Setting -> its default, from the tables below each heading."""
    settings = {}
    for section in re.split(r"^## ", CONFIGURATION, flags=re.MULTILINE)[1:]:
        heading = section.splitlines()[0].strip("`[]")
        table = "" if heading == "Top of the file" else f"{heading}."
        for name, default, text in re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|$", section, re.M):
            assert text.endswith(".")
            assert f"{table}{name}" not in settings
            settings[f"{table}{name}"] = default
    return settings


def declared(kind: type[Table] = Config, path: str = "") -> dict[str, str]:
    """The same from the structures."""
    settings = {}
    for field in structs.fields(kind):
        name = f"{path}{field.name}"
        inner = table_of(field.type)
        if inner:
            named = f"{name}.NAME" if get_origin(field.type) is dict else name
            settings |= declared(inner, f"{named}.")
        else:
            settings[name] = IN_WORDS.get(name) or written(field)
    return settings


def written(field: structs.FieldInfo) -> str:
    if field.required:
        return "required"
    if field.default in (None, UNSET):
        return "none" if field.default is None else "not set"
    assert field.default is not NODEFAULT
    return f"`{json.dumps(plain(field.default))}`"


def plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Duration | IPv4Network | IPv6Network) else value


def test_every_setting_is_documented_with_its_default() -> None:
    assert documented() == declared()


SUBMISSION = (ROOT / "docs" / "smtp.md").read_text().partition("## Submission\n")[2]
EXAMPLES = [
    *re.findall(r"```toml\n(.*?)```", CONFIGURATION, re.S),
    *re.findall(r"```toml\n(.*?)```", SUBMISSION.partition("\n## ")[0], re.S),
    *re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "pop3.md").read_text(), re.S),
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_is_a_good_configuration(example: str, tmp_path: Path) -> None:
    if "[tls]" in example:
        make_certificate(tmp_path, "DNS:relay.example.test")
    assert parse(example, tmp_path)


def test_every_category_of_a_reply_is_explained() -> None:
    text = (ROOT / "docs" / "bounces.md").read_text()
    explained = set(re.findall(r"^\| `([\w-]+)` \| .*?\. \| .*?\. \|$", text, re.M))
    assert explained == set(CATEGORIES)


class Documented(NamedTuple):
    """A row of docs/metrics.md."""

    kind: str
    unit: str
    labels: str
    what: str


def declared_metrics() -> set[str]:
    for module in pkgutil.walk_packages(fastmta.__path__, "fastmta."):
        if module.name != "fastmta.__main__":
            importlib.import_module(module.name)
    return {sample.name for sample in metrics.snapshot()}


def families() -> dict[str, metrics.Metric]:
    declared_metrics()
    return {metric.sample().name: metric for metric in metrics._declared}


METRICS = {
    name: Documented(kind, unit, labels, what)
    for name, kind, unit, labels, what in re.findall(
        r"^\| `(fastmta_\w+)` \| (\w+) \| (.+?) \| (.*?) ?\| (.+?) \| .*\|$",
        (ROOT / "docs" / "metrics.md").read_text(),
        re.M,
    )
}


def test_every_metric_is_documented() -> None:
    assert METRICS.keys() == declared_metrics()


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_is_as_documented(name: str) -> None:
    metric, told = families()[name], METRICS[name]
    sample = metric.sample()
    assert told.kind == sample.kind
    assert told.what.endswith(".")
    for unit in ("bytes", "seconds"):
        is_so = re.search(f"_{unit}(_total)?$", name) is not None and "_per_second" not in name
        assert is_so == told.unit.startswith(unit)
    named = re.findall(r"`(\w+)`[:,;]", f"{told.labels};".replace("`, `", "`; `"))
    assert [label for label in named if label in sample.labels] == list(sample.labels)
    if isinstance(metric, metrics.Counters) and len(metric.counts) < 7:
        assert re.findall(r"`([\w-]+)`", told.labels)[1:] == list(metric.counts)
    elif isinstance(metric, metrics.Counters):
        assert f"the {len(metric.counts)} " in told.labels or "the same" in told.labels


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_metrics_that_exist(path: Path) -> None:
    named = re.findall(r"\bfastmta_[a-z0-9_]+", path.read_text())
    assert {re.sub("_(bucket|sum|count)$", "", name) for name in named} <= declared_metrics()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings_that_are_there(path: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", path.read_text()):
        file, _, heading = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        assert not heading or heading in headings(target), link


def headings(path: Path) -> set[str]:
    """The anchors of a document, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", path.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in found}


def test_the_tables_of_the_benchmark_are_those_of_its_results() -> None:
    assert (BENCH / "results.md").read_text() == markdown.of(measured())


def test_the_readme_has_the_figures_of_the_results() -> None:
    """Its table is written by hand, from claims that results.md has in tables of their own."""
    rows = {
        "messages a second": ("relay", 0),
        "CPU a message, µs": ("relay", 1),
        "end of data to 250 at half of that load, p99, ms": ("latency", 1),
        "an idle session, KB": ("idle", 0),
    }
    text = (ROOT / "README.md").read_text()
    for title, (claim, row) in rows.items():
        (line,) = re.findall(rf"^\| {re.escape(title)} \| (.+) \|$", text, re.M)
        told = [cell.strip("* ") for cell in line.split("|")]
        shown = markdown.TABLES[claim][1][row]
        runs: dict[str, list[float]] = {}
        for run in measured().runs:
            if run.claim == claim:
                runs.setdefault(run.peer, []).append(shown.value(run))
        names = ["fastmta", "postfix", "exim", "opensmtpd", "haraka", "aiosmtpd", "null"]
        forms = ["{:,.1f}" if "." in cell else "{:,.0f}" for cell in told]
        assert told == [
            form.format(median(runs[name])) for form, name in zip(forms, names, strict=True)
        ]


def measured() -> Results:
    return msgspec.json.decode((BENCH / "results.json").read_bytes(), type=Results)


def test_names_are_as_prometheus_wants_them() -> None:
    """What promtool does not look at; it looks at the rest in tests/integration/test_prometheus."""
    for name, metric in families().items():
        kind = metric.sample().kind
        assert re.fullmatch(r"fastmta_[a-z0-9_]+", name)
        assert name.endswith("_total") == (kind == "counter")
        # In OpenMetrics a counter's family has its name without the end.
        assert kind == "counter" or f"{name}_total" not in families()
