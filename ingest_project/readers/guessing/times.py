"""Guess in which formats a column writes its times, with every format that fits as well."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import polars as pl

from ingest_project.readers.casting import parse_timestamps
from ingest_project.readers.guessing.names import VOCABULARY
from ingest_project.readers.profile_parts import TimestampLayout

MAX_FORMATS = 3
MAX_SHAPES = 12
MIN_SHARE = 0.5
MIN_COMPACT = 3
HINT = re.compile(
    r"(?i)time|date|zeit|datum|stamp|epoch|unix|(?:^|[_ ])(?:ts|at|utc|dt)(?:$|[_ ])|fecha|heure|hora|tag$"
)
DATES: dict[str, list[str]] = VOCABULARY["dates"]
CLOCK = re.compile(
    r"(?P<gap>[T ,_:-]*)(?P<hour>[0-9]{1,2})(?:(?P<c>[:.h])(?P<minute>[0-9]{2})"
    r"(?:(?P=c)(?P<second>[0-9]{2})(?:(?P<point>[.,])[0-9]+)?)?)?(?P<half> ?[AaPp][Mm]?)?"
    r"(?P<zone> ?(?:Z|UTC|GMT|[+-][0-9]{2}(?::?[0-9]{2})?))?"
)
COMPACT = {10: "%Y%m%d%H", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
COMPACT_CLOCK = re.compile(r"(?P<gap>[T _-]?)(?P<digits>[0-9]{6}|[0-9]{4})(?P<zone>Z?)")
TIME_OF_DAY = r"^(?:2[0-3]|[01]?[0-9])[:.][0-5][0-9](?:[:.][0-5][0-9](?:[.,][0-9]+)?)?(?: ?[AaPp][Mm]?)?$"
FIRST_UNIX = datetime(1990, 1, 1, tzinfo=UTC)


class TimeGuess(NamedTuple):
    """The formats of a column of times.

    Args:
        formats: formats for the profile; the first that fits a text wins.
        fit: texts that one of them reads.
        total: texts.
        alternatives: formats that read as many texts, with other results.
        why: evidence for the choice between formats.
        has_offset: share of the texts with an offset or a mark of UTC.
        has_clock: False for dates without a time of day.
        at_24: how many texts say 24:00.
    """

    formats: tuple[str, ...]
    fit: int
    total: int
    alternatives: tuple[str, ...]
    why: str
    has_offset: float
    has_clock: bool
    at_24: int = 0


def times_in_parts(texts: pl.Series, chosen: str) -> TimeGuess | None:
    """Guess a time that is split over columns (year, day, …) as one format of their values joined by spaces."""
    found = {chosen: _read(texts, chosen)}
    return _described(texts, [chosen], found) if found[chosen].count() >= MIN_SHARE * max(len(texts), 1) else None


def is_time_of_day(texts: pl.Series, name: str) -> bool:
    """Return True for a column of clock times without a date; one like 12.30 needs a name that says so."""
    fits = texts.str.contains(TIME_OF_DAY)
    if not len(texts) or fits.sum() < MIN_SHARE * len(texts):
        return False
    return bool(texts.str.contains("[:]|[.].*[.]").sum() >= MIN_SHARE * len(texts) or HINT.search(name))


def guess_times(texts: pl.Series, name: str) -> TimeGuess | None:
    """Guess the formats of a column; None for a column that holds no times.

    Args:
        texts: without missing ones.
        name: name of the column: digits alone are a time only where a name or every text says so.
    """
    unix = _guess_unix(texts, name)
    found = {format_: _read(texts, format_) for format_ in _candidates(texts)}
    if unix and not any(moments.null_count() == 0 for moments in found.values()):
        return unix
    chosen, fit = _greedy(texts, found)
    if not chosen or fit < MIN_SHARE * len(texts):
        return unix
    if _is_compact(chosen[0]) and not HINT.search(name) and (fit < len(texts) or len(texts) < MIN_COMPACT):
        return unix
    return _described(texts, chosen, found)


def _is_compact(format_: str) -> bool:
    return not set(format_.replace("%", "")) - set("YmdHMSbyj")


def _guess_unix(texts: pl.Series, name: str) -> TimeGuess | None:
    latest = datetime.now(UTC) + timedelta(days=1)
    for format_ in ("unix_seconds", "unix_milliseconds"):
        moments = _read(texts, format_)
        fit = int(moments.is_between(FIRST_UNIX, latest).sum())
        hinted = HINT.search(name) and fit >= MIN_SHARE * len(texts)
        if hinted or (fit == len(texts) >= MIN_COMPACT and moments.is_sorted() and moments.n_unique() > 1):
            first, last = (str(moment)[:10] for moment in (moments.min(), moments.max()))
            why = f"as a count since 1970 they are of {first} to {last}"
            return TimeGuess((format_,), fit, len(texts), (), why, 1.0, True)
    return None


def _read(texts: pl.Series, *formats: str, **options: Any) -> pl.Series:  # noqa: ANN401 - of the layout
    return parse_timestamps(texts, TimestampLayout(formats=formats, **{"hour_24": "midnight", **options}))


def _candidates(texts: pl.Series) -> list[str]:
    """Return the formats that the commonest shapes of the texts suggest."""
    shapes = texts.str.replace_all("[0-9]", "9").alias("shape")
    kinds = pl.DataFrame([texts.alias("text"), shapes]).group_by("shape").agg(pl.len(), pl.col("text").head(3))
    examples = kinds.sort("len", descending=True).head(MAX_SHAPES)["text"].explode()
    found = dict.fromkeys(format_ for text in examples for format_ in formats_of(text))
    return ["iso8601", *found] if found else []


def formats_of(text: str) -> list[str]:
    """Return the formats that one text may have, the likelier first."""
    if text.isdecimal() and len(text) in COMPACT:
        return [COMPACT[len(text)]]
    for pattern, formats in DATES.items():
        match = re.match(pattern, text)
        clock = match and _clock_format(text[match.end() :])
        if match and clock is not None:
            return [format_.replace("{s}", match["s"]) + clock for format_ in formats]
    return []


def _clock_format(text: str) -> str | None:
    """Return the format of what follows a date; None for anything but a time of day."""
    if not text:
        return ""
    if match := COMPACT_CLOCK.fullmatch(text):
        return match["gap"] + ("%H%M%S" if len(match["digits"]) == len("HHMMSS") else "%H%M") + match["zone"]
    match = CLOCK.fullmatch(text)
    if match is None or not match["gap"]:
        return None
    found = match["gap"] + ("%I" if match["half"] else "%H")
    found += f"{match['c']}%M" if match["minute"] else ""
    found += f"{match['c']}%S" if match["second"] else ""
    found += f"{match['point']}%f" if match["point"] else ""
    found += re.sub("[AaPp][Mm]?", "%p", match["half"] or "")
    return found + re.sub(r"[+-].*|Z", "%z", match["zone"] or "")


def _greedy(texts: pl.Series, found: dict[str, pl.Series]) -> tuple[list[str], int]:
    """Choose formats until every text is read, each time the one that reads most of the remaining texts."""
    chosen: list[str] = []
    left = pl.repeat(value=True, n=len(texts), eager=True)
    while left.any() and len(chosen) < MAX_FORMATS:
        allowed = [format_ for format_ in found if not any(_is_other_order(format_, each) for each in chosen)]
        counts = {format_: int((found[format_].is_not_null() & left).sum()) for format_ in allowed}
        best = max(
            counts, key=lambda format_: (counts[format_], _order(format_) == _order((chosen or [""])[0])), default=""
        )
        if not counts.get(best):
            break
        chosen.append(best)
        left &= found[best].is_null()
    return chosen, len(texts) - int(left.sum())


def _is_other_order(one: str, other: str) -> bool:
    """Return True for formats that differ in the order of day, month and short year alone: most texts fit both."""
    return one != other and re.sub("%[dmy]", "%", one) == re.sub("%[dmy]", "%", other)


def _order(format_: str) -> str:
    """Return the order of day, month and year in a format."""
    return "".join(re.findall("%[-]?([dmyYb])", format_)).lower()


def _described(texts: pl.Series, chosen: Sequence[str], found: dict[str, pl.Series]) -> TimeGuess:
    first = chosen[0]
    unread = found[first].is_null()
    rivals = [f for f, m in found.items() if m.is_null().equals(unread) and not m.equals(found[first])]
    candidates = [first, *rivals] if rivals else []
    first, why = _likelier(candidates, found) if rivals else (first, _evidence(first, found))
    if first != chosen[0]:
        chosen = [first, *(format_ for format_ in chosen[1:] if _order(format_) != _order(chosen[0]))]
    moments, elsewhere = _read(texts, *chosen), _read(texts, *chosen, zone="UTC+01:00")
    return TimeGuess(
        formats=tuple(chosen),
        fit=moments.count(),
        total=len(texts),
        alternatives=tuple(each for each in candidates if each != first),
        why=why,
        has_offset=int((moments == elsewhere).sum()) / max(len(texts), 1),
        has_clock=any(re.search("%-?[HI]|iso8601", format_) for format_ in chosen),
        at_24=moments.count() - _read(texts, *chosen, hour_24="reject").count(),
    )


def _likelier(rivals: Sequence[str], found: dict[str, pl.Series]) -> tuple[str, str]:
    """Choose between formats that read all texts with other results: the one whose steps are more regular."""
    regular = {format_: _regularity(found[format_]) for format_ in rivals}
    best = max(regular, key=lambda format_: (round(regular[format_], 2), "%p" in format_ and format_.startswith("%m")))
    if round(regular[best], 2) > round(min(regular.values()), 2):
        return best, f"its steps are the more regular ({regular[best]:.0%} alike)"
    return best, "nothing in the file decides it"


def _regularity(moments: pl.Series) -> float:
    """Return the share of the commonest step between one time and the next."""
    steps = moments.drop_nulls().diff().drop_nulls()
    steps = steps.filter(steps != timedelta(0))
    return int(steps.value_counts()["count"].max() or 0) / len(steps) if len(steps) else 0.0  # type: ignore[arg-type]


def _evidence(first: str, found: dict[str, pl.Series]) -> str:
    """Describe the evidence for day first or month first."""
    others = [f for f in found if f != first and sorted(_order(f)) == sorted(_order(first)) and len(f) == len(first)]
    if not others or _order(first).startswith("y"):
        return ""
    decided = found[first].count() - max(found[each].count() for each in others)
    part = "day" if _order(first).startswith("d") else "month"
    return f"{part} first: {decided:,} fit no other order"


def joined(columns: Iterable[pl.Series]) -> pl.Series:
    """Join the texts of several columns with a space; null where one is missing."""
    return (
        pl.DataFrame([column.alias(str(n)) for n, column in enumerate(columns)])
        .select(pl.concat_str(pl.all(), separator=" "))
        .to_series()
    )
