"""Facts as a person would say them."""

from datetime import UTC, datetime


def visible(text: str) -> str:
    """Text that others wrote, as a terminal may have it: what is not printable but for line ends
    and tabs is escaped, so that no message moves the cursor or changes the order of letters."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def moment(when: float) -> str:
    return datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def span(seconds: float) -> str:
    """A length of time in its two largest units: "3d 4h", "5m 2s", "12s"."""
    left = max(0, int(seconds))
    parts: list[str] = []
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count or (unit == "s" and not parts):
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])


def size(octets: int) -> str:
    """Octets in the unit that a person would say: "512 B", "4.2 KB", "25 MB"."""
    value, unit = float(octets), "B"
    for larger in ("KB", "MB", "GB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" or value >= 10 else f"{value:.1f} {unit}"


def many(count: int, what: str) -> str:
    """A number with its noun: "1 envelope", "12,345 envelopes"."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def is_are(count: int) -> str:
    return "is" if count == 1 else "are"


def pace(events: float) -> str:
    """So many a second, in the unit that gives a number above 1: "2.5/s", "30/m", "12/h"."""
    for unit, length in (("s", 1), ("m", 60)):
        if events * length >= 1 - 1e-6:
            return f"{events * length:.3g}/{unit}"
    return f"{events * 3600:.3g}/h"
