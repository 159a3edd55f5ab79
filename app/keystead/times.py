"""Dates and durations in text (contract-infisical, "CAs" and "Leaves"), and allowed clock skew. Pure."""

import re
from datetime import UTC, datetime, timedelta

import msgspec

# A CA's clock may be this far ahead of ours.
CLOCK_SKEW = timedelta(minutes=5)


def has_begun(not_before: datetime, now: datetime) -> bool:
    """Whether notBefore has passed, with CLOCK_SKEW allowed."""
    return not_before <= now + CLOCK_SKEW


_DATE = re.compile(
    r"(?P<year>[0-9]{4})(?:-(?P<month>[0-9]{2})(?:-(?P<day>[0-9]{2})"
    r"(?P<time>T[0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,9})?)?(?:Z|[+-][0-9]{2}:?[0-9]{2})?)?)?)?"
)
_SPAN = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?([smhdwy])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800, "y": 31_536_000}
# About 3000 years: beyond any certificate, and within the range of timedelta.
_MAX_SECONDS = 10**11


def date(text: str) -> datetime | None:
    """Parse `2029`, `2029-06`, `2029-06-12` or an ISO 8601 date and time, UTC by default; None if invalid."""
    match = _DATE.fullmatch(text)
    if match is None:
        return None
    time = match["time"] or "T00:00:00Z"
    try:
        found = datetime.fromisoformat(f"{match['year']}-{match['month'] or '01'}-{match['day'] or '01'}{time}")
        return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None


def span(text: str) -> timedelta | None:
    """Parse a duration such as `90d` or `1.5 h`; units are s, m, h, d, w, y (365 days). None if invalid or < 1 s."""
    match = _SPAN.fullmatch(text)
    seconds = int(float(match[1]) * _SECONDS[match[2]]) if match else 0
    return timedelta(seconds=min(seconds, _MAX_SECONDS)) if seconds else None


def instant(time: datetime) -> str:
    """RFC 3339 in UTC with microseconds and Z."""
    # A tenth of the time of `isoformat`, but it omits a fraction of zero.
    text: str = msgspec.to_builtins(time.astimezone(UTC))
    return text if "." in text else f"{text[:-1]}.000000Z"
