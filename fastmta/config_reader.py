"""From a parsed TOML file to structures, with every problem named by its key.

Knows types, not settings: what the tables are is in config.py.
"""

import difflib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from types import UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    NewType,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

import idna
from msgspec import Meta, Struct, UnsetType, structs

from fastmta.mail.address import is_mailbox

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", re.ASCII)
_RATE = re.compile(r"(\d{1,9})/([smhd])", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
# RFC 5321 section 4.1.2: sub-domain, with the 63 octets of RFC 1035 section 2.3.4.
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)

Network = IPv4Network | IPv6Network
# An address of this machine that mail may leave from; a plain string at run time.
Address = NewType("Address", str)
# What a source or pool is called: in path names, in the log and on the command line.
Name = NewType("Name", str)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)


class Problem(NamedTuple):
    """What is wrong with one key, and what to write instead; `key` is "" for the whole file."""

    key: str  # "listener[0].bind"
    text: str

    def __str__(self) -> str:
        return f"{self.key}: {self.text}" if self.key else self.text


class ConfigError(Exception):
    """The configuration cannot be used; one line of text for each problem."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


class Duration(float):
    """Seconds; written "30s", "5m", "1h30m", "5d"."""

    @classmethod
    def parse(cls, text: str) -> "Duration":
        parts = _DURATION.findall(text)
        if not parts or "".join(number + unit for number, unit in parts) != text:
            raise ValueError(f'{_show(text)} is no duration; write "30s", "5m", "1h30m" or "5d"')
        return cls(sum(float(number) * _SECONDS[unit] for number, unit in parts))

    def __str__(self) -> str:
        left, written = float(self), ""
        for unit in ("d", "h", "m"):
            count, left = divmod(left, _SECONDS[unit])
            written += f"{count:.0f}{unit}" if count else ""
        return written + (f"{left:g}s" if left or not written else "")


class Rate(NamedTuple):
    """So many in so many seconds; written "100/s", "600/m", "5000/h", "20000/d"."""

    events: int
    seconds: float

    @classmethod
    def parse(cls, text: str) -> "Rate":
        found = _RATE.fullmatch(text)
        if not found or not int(found[1]):
            examples = '"100/s", "600/m", "5000/h" or "20000/d"'
            raise ValueError(f"{_show(text)} is no rate; write {examples}, at most 999999999")
        return cls(int(found[1]), _SECONDS[found[2]])

    def __str__(self) -> str:
        unit = next(unit for unit, seconds in _SECONDS.items() if seconds == self.seconds)
        return f"{self.events}/{unit}"


class Endpoint(NamedTuple):
    """A host (name or address) and a port; written "127.0.0.1:25", "[::1]:25", "mail.test:25"."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Endpoint":
        host, _, port = text.rpartition(":")
        if not (host and port.isascii() and port.isdigit()):
            raise ValueError(
                f'{_show(text)} is no "host:port"; write "127.0.0.1:2525" or "[::1]:2525"'
            )
        if not (len(port) <= 5 and 0 < int(port) < 65536):
            raise ValueError(f"{_show(text)}: a port is a number from 1 to 65535")
        return cls(_host(host), int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


# sun_path of unix(7), with the NUL at its end.
_LONGEST_PATH = 107


class NextHop(Endpoint):
    """An endpoint, or a unix socket: written "unix:/run/lmtp", which is its `host`; no port."""

    @classmethod
    def parse(cls, text: str) -> "NextHop":
        if not text.startswith("unix:"):
            return cls(*Endpoint.parse(text))
        path = text.removeprefix("unix:")
        # What separates the hosts of a site's name cannot be part of one.
        if not path.startswith("/") or not path.isprintable() or set(path) & set(" >|"):
            raise ValueError(
                f'{_show(text)} is no socket; write an absolute path: "unix:/run/lmtp"'
            )
        if len(path.encode()) > _LONGEST_PATH:
            raise ValueError(f"{_show(text)}: a socket's path has at most {_LONGEST_PATH} octets")
        return cls(text, 0)

    @property
    def path(self) -> str:
        """Of a unix socket; "" for anything else."""
        return self.host[5:] if self.host.startswith("unix:") else ""

    def __str__(self) -> str:
        return self.host if self.path else super().__str__()


# A host or domain name in lower case, A-labels where it is not ASCII (RFC 5890). Plain strings
# at run time: msgspec encodes no subclasses of str.
DomainName = NewType("DomainName", str)
# What a route matches: "example.test", "*.example.test" (all below it) or "*" (any).
DomainPattern = NewType("DomainPattern", str)


def parse_domain(text: str) -> DomainName:
    """The name in normal form; ValueError for what is no name, an address among them."""
    try:
        name = text.lower() if text.isascii() else idna.encode(text, uts46=True).decode()
    except UnicodeError:
        name = ""
    if len(name) > 253 or not all(map(_LABEL.fullmatch, name.split("."))):
        raise ValueError(f'{_show(text)} is no domain name; write one such as "mail.example.test"')
    if name.rpartition(".")[2].isdigit():
        raise ValueError(f"{_show(text)} is an address; write a domain name")
    return DomainName(name)


def parse_pattern(text: str) -> DomainPattern:
    if text == "*":
        return DomainPattern(text)
    below = "*." if text.startswith("*.") else ""
    return DomainPattern(below + parse_domain(text.removeprefix(below)))


def parse_address(text: str) -> Address:
    try:
        address = ip_address(text)
    except ValueError:
        address = None
    if address is None or "%" in text:
        raise ValueError(f'{_show(text)} is no address; write "192.0.2.10" or "2001:db8::10"')
    if address.is_unspecified or address.is_multicast:
        raise ValueError(f"{_show(text)}: no mail can leave from this address")
    return Address(str(address))


# What distinguishes the DKIM keys of a domain: one label or several (RFC 6376 section 3.1).
Selector = NewType("Selector", str)


def parse_selector(text: str) -> Selector:
    if len(text) > 63 or not all(map(_LABEL.fullmatch, text.lower().split("."))):
        raise ValueError(f'{_show(text)} is no selector; write letters and digits, as in "s1"')
    return Selector(text.lower())


def parse_name(text: str) -> Name:
    if not _NAME.fullmatch(text):
        raise ValueError(f'{_show(text)} is no name; write letters and digits, as in "bulk-1"')
    return Name(text)


def covers(one: DomainPattern, other: DomainPattern) -> bool:
    """Whether `one` matches each domain that `other` matches."""
    return one in ("*", other) or (one.startswith("*.") and other.endswith(one[1:]))


# A mailbox, or "" for none.
MailAddress = NewType("MailAddress", str)


def parse_mail_address(text: str) -> MailAddress:
    if text and not is_mailbox(text):
        raise ValueError(f'{_show(text)} is no mail address; write "postmaster@example.test"')
    return MailAddress(text)


class Table(Struct, frozen=True, kw_only=True):
    """A table of the file: each field is a key."""


def _host(text: str) -> str:
    if text.startswith("[") and text.endswith("]"):
        return str(ip_address(text[1:-1]))
    if ":" in text:
        raise ValueError(f"{_show(text)}: an IPv6 address goes in brackets, as in [::1]:25")
    try:
        return str(ip_address(text))
    except ValueError:
        return parse_domain(text)


def _path(text: str, folder: Path) -> Path:
    if not (text and text.isprintable()):
        raise ValueError(f"{_show(text)} is no path")
    return folder / text


# type of a field -> what reads it from a string
_READERS: dict[Any, Callable[[str, Path], Any]] = {
    Duration: lambda text, _: Duration.parse(text),
    Rate: lambda text, _: Rate.parse(text),
    Endpoint: lambda text, _: Endpoint.parse(text),
    NextHop: lambda text, _: NextHop.parse(text),
    DomainName: lambda text, _: parse_domain(text),
    DomainPattern: lambda text, _: parse_pattern(text),
    Address: lambda text, _: parse_address(text),
    Name: lambda text, _: parse_name(text),
    MailAddress: lambda text, _: parse_mail_address(text),
    Selector: lambda text, _: parse_selector(text),
    Network: lambda text, _: ip_network(text),
    Path: _path,
}
_EXAMPLES: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number such as 25",
    str: "a string in quotes",
    Duration: 'a duration such as "5m"',
    Rate: 'a rate such as "100/s"',
    Endpoint: 'a string such as "127.0.0.1:2525"',
    NextHop: 'a string such as "127.0.0.1:2525" or "unix:/run/lmtp"',
    DomainName: 'a domain name such as "mail.example.test"',
    DomainPattern: 'a domain such as "example.test", "*.example.test" or "*"',
    Address: 'an address such as "192.0.2.10"',
    Name: 'a name such as "bulk-1"',
    MailAddress: 'a mail address such as "postmaster@example.test"',
    Selector: 'a selector such as "s1"',
    Network: 'a network such as "192.0.2.0/24"',
    Path: 'a path such as "/var/lib/fastmta"',
}
_TOP = "at the top of the file, above the first [table]"
_T = TypeVar("_T", bound=Table)
_Home = tuple[str, list[str]]  # where a table is, and its keys


class Reader:
    """Reads tables into structures of one root type; what is wrong is added to `problems`."""

    def __init__(
        self,
        root: type[Table],
        later: dict[str, str],
        folder: Path,
        kept: dict[str, int] | None = None,
    ) -> None:
        self._root = root
        self._later = later  # key that a later release will know -> what it is
        self._folder = folder  # relative paths count from here
        self._kept = kept or {}  # path -> descriptor of its content, where it cannot be read
        self.problems: list[Problem] = []

    def table(self, kind: type[_T], raw: object, path: str = "") -> _T | None:
        """The structure, or None where this table or one in it has a problem."""
        before = len(self.problems)
        if not isinstance(raw, dict):
            self._add(path, f"is {_kind_of(raw)}, but must be a table: write [{path}]")
            return None
        fields = {field.name: field for field in _fields(kind)}
        for key in [key for key in raw if key not in fields]:
            if isinstance(raw[key], dict) and "." in path:  # [domains.example.test]
                home = path.partition(".")[0]
                why = f'unknown key; a name with dots wants quotes: [{home}."example.test"]'
            else:
                why = self._unknown(key, kind, path)
            self._add(_join(path, key), why)
        values = {}
        for name, field in fields.items():
            if name in raw:
                values[name] = self._value(field.type, raw[name], _join(path, name))
            elif field.required:
                self._add(_join(path, name), f"is missing; write {_example(field.type, name)}")
        return kind(**values) if len(self.problems) == before else None

    def _add(self, key: str, text: str) -> None:
        self.problems.append(Problem(key, text))

    def _value(self, kind: Any, raw: object, path: str) -> Any:
        kind, meta = _unwrap(kind)
        if get_origin(kind) is tuple:
            return self._array(get_args(kind)[0], raw, path)
        if get_origin(kind) is dict:
            name, kind = get_args(kind)
            return self._named(name, kind, raw, path)
        if get_origin(kind) is Literal:
            return self._choice(get_args(kind), raw, path)
        if _is_table(kind):
            return self.table(kind, raw, path)
        value = self._scalar(kind, raw, path)
        if meta is not None and value is not None and (text := _range_error(meta, value, kind)):
            self._add(path, f"{_show(raw)} {text}")
        return value

    def _array(self, kind: Any, raw: object, path: str) -> tuple[Any, ...] | None:
        if not isinstance(raw, list):
            hint = _example(tuple[kind, ...], path)
            self._add(path, f"is {_kind_of(raw)}, but must be a list: write {hint}")
            return None
        return tuple(self._value(kind, item, f"{path}[{i}]") for i, item in enumerate(raw))

    def _named(self, name: Any, kind: Any, raw: object, path: str) -> dict[str, Any] | None:
        """A table whose keys are names that the operator gives, read as the type `name`."""
        if not isinstance(raw, dict):
            table = "{ NAME = ... }" if "[" in path else f"[{path}]"
            self._add(path, f"is {_kind_of(raw)}, but must be a table: write {table}")
            return None
        found: dict[str, Any] = {}
        for key, item in raw.items():
            normal = self._scalar(name, key, _join(path, key))
            if normal is not None and normal in found:
                self._add(_join(path, key), f"is [{_join(path, normal)}] once more")
            found[normal] = self._value(kind, item, _join(path, key))
        return found

    def _choice(self, choices: tuple[str, ...], raw: object, path: str) -> object:
        if isinstance(raw, str) and raw in choices:
            return raw
        written = " or ".join(map(json.dumps, choices))
        if not isinstance(raw, str):
            self._add(path, f"is {_kind_of(raw)}, but must be {written}")
            return None
        later = self._later.get(f'{path.rpartition(".")[2]} = "{raw}"')
        self._add(path, later or f"{_show(raw)} is not known; write {written}{_near(raw, choices)}")
        return None

    def _scalar(self, kind: Any, raw: object, path: str) -> Any:
        reader = _READERS.get(kind)
        if type(raw) is not (str if reader else kind):
            self._add(path, f"is {_kind_of(raw)}, but must be {_EXAMPLES[kind]}")
            return None
        try:
            value: Any = reader(raw, self._folder) if reader else raw
            return self._readable(value) if kind is Path else value
        except ValueError as error:
            self._add(path, str(error))
            return None

    def _readable(self, path: Path) -> Path:
        """The path, or where what it held before root was given up can be read."""
        kept = self._kept.get(str(path))
        if kept is None or os.access(path, os.R_OK):
            return path
        return Path(f"/proc/self/fd/{kept}")

    def _unknown(self, key: str, kind: type[Table], path: str) -> str:
        """What to say of a key that its table does not have."""
        if later := self._later.get(_join(path, key)):
            return later
        own, homes = [field.name for field in _fields(kind)], _homes(self._root)
        if key in homes:
            return f"unknown key; it belongs {homes[key]}"
        if near := _near(key, own):
            return f"unknown key{near}"
        near = _nearest(key, homes)
        return f"unknown key; did you mean {near} {homes[near]}?" if near else "unknown key"


def _nearest(word: str, known: Iterable[str]) -> str:
    return next(iter(difflib.get_close_matches(word.lower()[:100], list(known), 1, 0.6)), "")


def _near(word: str, known: Iterable[str]) -> str:
    nearest = _nearest(word, known)
    return f"; did you mean {nearest}?" if nearest else ""


def _unwrap(kind: Any) -> tuple[Any, Meta | None]:
    """The type that a value is read as, without `| None`, `| UNSET` and its range."""
    if get_origin(kind) is Annotated:
        kind, meta = get_args(kind)
        return _unwrap(kind)[0], meta
    if kind not in _READERS and get_origin(kind) in (Union, UnionType):
        (kind,) = (k for k in get_args(kind) if k not in (type(None), UnsetType))
        return _unwrap(kind)
    return kind, None


def _range_error(meta: Meta, value: float, kind: Any) -> str:
    def show(bound: float | None) -> str:
        return str(kind(bound))

    if meta.gt is not None and not value > meta.gt:
        return f"is too small; it must be more than {show(meta.gt)}"
    if meta.ge is not None and not value >= meta.ge:
        return f"is too small; the least is {show(meta.ge)}"
    if meta.le is not None and not value <= meta.le:
        return f"is too large; the most is {show(meta.le)}"
    return ""


# Many wrong keys, as a list of tables may have, are to cost one look at all types.
_fields = cache(structs.fields)


@cache
def _homes(root: type[Table]) -> dict[str, str]:
    """The first table of each key, as a person would say where it is."""
    return {name: place for place, names in reversed([*_tables(root)]) for name in names}


def _tables(kind: type[Table], path: str = "", place: str = _TOP) -> Iterator[_Home]:
    """Each table of the file as a person would say where it is, with its keys."""
    fields = _fields(kind)
    yield place, [field.name for field in fields]
    for field in fields:
        if inner := table_of(field.type):
            name = _join(path, field.name)
            repeated = get_origin(field.type) is tuple
            yield from _tables(inner, name, f"in [[{name}]]" if repeated else f"in [{name}]")


def table_of(kind: Any) -> type[Table] | None:
    """The structure behind a field's type, where it is a table or a list of them."""
    kind, _ = _unwrap(kind)
    if get_origin(kind) is tuple:
        kind = get_args(kind)[0]
    elif get_origin(kind) is dict:
        kind = get_args(kind)[1]
    return kind if _is_table(kind) else None


def _is_table(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Table)


def _example(kind: Any, path: str) -> str:
    kind, _ = _unwrap(kind)
    if get_origin(kind) is tuple:
        (inner, _) = get_args(kind)
        return f"[[{path}]]" if _is_table(inner) else f"a list in [...] with {_EXAMPLES[inner]}"
    if get_origin(kind) is dict:
        return f"[{path}]"
    if get_origin(kind) is Literal:
        return " or ".join(map(json.dumps, get_args(kind)))
    return _EXAMPLES[kind]


def _join(path: str, key: str) -> str:
    """The key with its table in front, quoted where TOML wants quotes."""
    key = key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key)
    return f"{path}.{key}" if path else key


def _show(value: object) -> str:
    """A scalar as the file has it, cut where it is long, without control characters."""
    if isinstance(value, int) and value.bit_length() > 200:
        return "the number"  # Python refuses to write thousands of digits
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _kind_of(value: object) -> str:
    kinds: dict[type, str] = {dict: "a table", list: "a list"}
    names: dict[type, str] = {
        bool: "a truth value",
        int: "a number",
        float: "a number",
        str: "a string",
    }
    kind: type = type(value)
    return kinds.get(kind) or f"{names.get(kind, 'a date or time')} ({_show(value)})"
