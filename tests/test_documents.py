"""What the documents say of the program is so."""

import importlib
import json
import pkgutil
import re
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any, get_origin

import pytest
from msgspec import NODEFAULT, UNSET, structs

import fastmta
from fastmta import metrics
from fastmta.config import Config, Duration, parse
from fastmta.config_reader import Table, table_of
from fastmta.mail.classification import CATEGORIES
from tests.certificates import make_certificate

ROOT = Path(__file__).parent.parent
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


def declared_metrics() -> set[str]:
    for module in pkgutil.walk_packages(fastmta.__path__, "fastmta."):
        if module.name != "fastmta.__main__":
            importlib.import_module(module.name)
    return {sample.name for sample in metrics.snapshot()}


def names(expression: str) -> set[str]:
    """The metrics that a PromQL expression reads; a histogram's series by the histogram's name."""
    return {
        re.sub("_(bucket|sum|count)$", "", name) for name in re.findall(r"fastmta_\w+", expression)
    }


def test_every_panel_reads_a_metric_that_exists() -> None:
    dashboard = json.loads((ROOT / "grafana" / "fastmta.json").read_text())
    shown = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in names(target["expr"])
    }
    assert shown
    assert shown - declared_metrics() == set()
