"""The date-time of header fields (RFC 5322 section 3.3)."""

from datetime import UTC, datetime, timedelta, timezone

from fastmta._core.dates import date_time

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def parse_date(value: bytes) -> datetime | None:
    """The moment that a date-time names; None for what names none, as 30 February.

    A zone that says nothing ("-0000", a military letter, one of no known name) counts as UTC.
    """
    found = date_time(value)
    if found is None:
        return None
    year, month, day, hour, minute, second, offset = found
    # RFC 5322 section 3.3 allows the leap second, which datetime does not know.
    second = 59 if second == 60 else second
    zone = timezone(timedelta(minutes=offset)) if -1440 < offset < 1440 and offset else UTC
    try:
        return datetime(year, month, day, hour, minute, second, tzinfo=zone)
    except ValueError:
        return None


def format_date(moment: datetime) -> str:
    """An aware datetime as RFC 5322 section 3.3 writes it, whatever the locale."""
    offset = moment.utcoffset() or timedelta()
    minutes = abs(offset) // timedelta(minutes=1)
    return (
        f"{_DAYS[moment.weekday()]}, {moment.day} {_MONTHS[moment.month - 1]} {moment.year:04}"
        f" {moment.hour:02}:{moment.minute:02}:{moment.second:02}"
        f" {'-' if offset < timedelta() else '+'}{minutes // 60:02}{minutes % 60:02}"
    )
