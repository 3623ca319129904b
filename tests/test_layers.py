"""The layers: a file imports only from layers before it, and its own."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "fastmta"

# Bottom first. server and delivery never import each other: they meet at the spool.
LAYERS = [
    {"_core"},
    {"mail"},
    {"protocol"},
    {"store"},
    {"queue"},
    {"delivery"},
    {"server"},
    {"web"},
    {"control"},
    {"privileges"},
    {"kept"},
    {"held"},
    {"notify"},
    {"policy_desk"},
    {"worker_main"},
    {"worker_desk"},
    {"worker_door"},
    {"worker_mail"},
    {"worker_shard"},
    {"worker"},
    {"worker_process"},
    {"order_desk"},
    {"limits_desk"},
    {"control_server"},
    {"supervisor"},
    {"sink"},
    {"cli"},
    {"__main__"},
]
# They stand beside the layers, for everything above protocol.
BESIDE = {
    *("config", "config_abuse", "config_auth", "config_dkim", "config_mailboxes"),
    *("config_outbound", "config_pop3", "config_process", "config_reader", "config_rules"),
    "config_shaping",
    *("config_submission", "config_tls", "log", "metrics", "vitals"),
    *("policy", "policy_file", "policy_runner"),
}
PURE = {"_core", "mail", "protocol"}
APART = {("server", "delivery"), ("delivery", "server")}
NO_INPUT_OR_OUTPUT = {"asyncio", "socket", "ssl", "uvloop", "lmdb", "aiohttp", "dns", "threading"}

RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}


def allowed(importer: str, imported: str) -> bool:
    """Whether a file of layer `importer` may import from `imported`."""
    if imported in ("", importer):  # the package itself holds the version alone
        return True
    if imported in BESIDE:
        return importer not in PURE
    if importer in BESIDE:
        return imported == "mail"
    return RANK[imported] < RANK[importer] and (importer, imported) not in APART


def imported_modules(source: str, module: str) -> Iterator[str]:
    """The dotted names that a Python source imports, at whatever depth they stand."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = ".".join(module.split(".")[: -node.level]) if node.level else ""
            base = ".".join(filter(None, (parent, node.module)))
            # `from fastmta import metrics` names a module only in its second half.
            yield from (f"{base}.{alias.name}" for alias in node.names)


def cimported_modules(source: str, module: str) -> Iterator[str]:
    """The same for Cython, line by line: `import`, `cimport` and both kinds of `from`."""
    for match in re.finditer(r"^\s*from\s+([\w.]+)\s+c?import\s+\(?([\w, ]*)", source, re.M):
        base, names = match.groups()
        if base.startswith("."):
            level = len(base) - len(base.lstrip("."))
            base = ".".join([*module.split(".")[:-level], base.lstrip(".")]).rstrip(".")
        yield from (f"{base}.{name.split()[0]}" for name in names.split(",") if name.strip())
    for match in re.finditer(r"^\s*c?import\s+([\w., ]+)", source, re.M):
        yield from (name.split()[0] for name in match[1].split(",") if name.strip())


def violations(path: Path, source: str) -> list[str]:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    module = ".".join(parts)
    layer = parts[1] if parts[1] != "__init__" else ""
    find = imported_modules if path.suffix == ".py" else cimported_modules
    wrong = []
    for name in find(source, module):
        top, _, rest = name.partition(".")
        target = rest.partition(".")[0]
        if (
            top == "fastmta"
            and target in RANK.keys() | BESIDE
            and not (layer and allowed(layer, target))
        ):
            wrong.append(f"{module} imports {name}")
        if layer in PURE and top in NO_INPUT_OR_OUTPUT:
            wrong.append(f"{module} imports {name}: {layer} does no input or output")
    return wrong


SOURCES = sorted(path for path in PACKAGE.rglob("*") if path.suffix in {".py", ".pyx", ".pxd"})


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_import_reaches_up(path: Path) -> None:
    assert violations(path, path.read_text()) == []


def test_every_file_is_in_a_layer() -> None:
    known = RANK.keys() | BESIDE | {"__init__"}
    assert {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in SOURCES} <= known


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("mail/reply.py", "from fastmta.protocol.smtp_server import Machine"),
        ("mail/reply.py", "from fastmta import metrics"),
        ("mail/reply.py", "import fastmta.config"),
        ("mail/reply.py", "def f():\n    from ..store import spool"),
        ("mail/reply.py", "import asyncio"),
        ("server/smtp.py", "from fastmta.delivery.site import Site"),
        ("delivery/dns.py", "from fastmta.server import session"),
        ("store/spool.py", "from ..queue.ready import Job"),
        ("web/metrics.py", "import fastmta.worker"),
        ("config.py", "from fastmta.store import env"),
        ("_core/data.pyx", "from fastmta.mail.reply import Reply"),
        ("_core/data.pyx", "from fastmta.mail.reply cimport Reply"),
        ("_core/data.pyx", "    import fastmta.metrics"),
        ("_core/data.pxd", "from ..mail cimport reply"),
    ],
)
def test_a_planted_import_is_found(file: str, line: str) -> None:
    assert violations(PACKAGE / file, f'"""Text."""\n\n{line}\n')


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("mail/reply.py", "from fastmta._core import address"),
        ("store/spool.py", "from fastmta import metrics"),
        ("server/smtp.py", "from fastmta.protocol import smtp_server"),
        ("_core/data.pyx", "from fastmta._core.lines cimport find"),
        ("_core/data.pyx", "from libc.string cimport memchr"),
        ("cli/serve.py", "from fastmta.supervisor import run"),
        ("cli/__init__.py", "from fastmta.config import Config"),
    ],
)
def test_an_import_from_below_is_free(file: str, line: str) -> None:
    assert violations(PACKAGE / file, line) == []
