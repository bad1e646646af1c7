"""Which batches a schedule owes: pure functions of its cron expression, the clock and what is there."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from cronsim import CronSim

PREFIX = "daily-"
"""Of the batches of the schedule."""

CatchUp = Literal["skip", "latest", "all"]


@dataclass(frozen=True)
class Due:
    """The ticks to make a batch for, oldest first; or why there is none."""

    ticks: tuple[datetime, ...] = ()
    skipped: str = ""


def batch_of(tick: datetime, cron: str) -> str:
    """The batch of a tick: `daily-2026-11-24`, by the schedule's own time zone.

    For a cron expression that may come true more than once a day the hour and minute follow, in UTC, which
    has no hour twice: `daily-2026-11-24T0600Z`.
    """
    minute, hour = cron.split()[:2]
    if minute.isdigit() and hour.isdigit():
        return f"{PREFIX}{tick:%Y-%m-%d}"
    return f"{PREFIX}{tick.astimezone(UTC):%Y-%m-%dT%H%MZ}"


def due(
    cron: str,
    tick: datetime,
    *,
    now: datetime,
    batches: Collection[str],
    catch_up: CatchUp,
    late: timedelta,
    most: int,
) -> Due:
    """The ticks that want a batch when the scheduler comes with `tick`, the latest one that it knows of.

    Args:
        cron: Five fields, in the time zone of `tick`.
        tick: With its time zone.
        now: With any.
        batches: Ids of the batches that there are.
        catch_up: What becomes of ticks that nobody served.
        late: A tick older than this has been missed.
        most: How many `all` makes up for, `tick` included.
    """
    if catch_up == "skip" and now - tick > late:
        minutes = int((now - tick).total_seconds() // 60)
        when = f"{tick:%Y-%m-%d %H:%M}"
        return Due(skipped=f"the tick of {when} is {minutes} minutes late (schedule.catch_up: skip)")
    ticks = [tick]
    if catch_up == "all" and any(name.startswith(PREFIX) for name in batches):
        for earlier in CronSim(cron, tick, reverse=True):
            if len(ticks) >= most or batch_of(earlier, cron) in batches:
                break
            ticks.append(earlier)
    return Due(tuple(reversed(ticks)))


def within_cap(
    ticks: Sequence[datetime], images: int, asked_for: Mapping[str, int], most: int | None
) -> tuple[list[datetime], list[str]]:
    """The ticks for which there is room under the cap of their day, and for the others why there is none.

    Args:
        ticks: Oldest first.
        images: Of one batch.
        asked_for: Images asked for already, by day (`day_of`).
        most: Images in a day; None: any number.
    """
    room = dict(asked_for)
    kept: list[datetime] = []
    reasons: list[str] = []
    for tick in ticks:
        day = day_of(tick)
        used = room.get(day, 0)
        if most is not None and used + images > most:
            reasons.append(
                f"{images:,} images at {tick:%Y-%m-%d %H:%M} would pass schedule.max_images_per_day: "
                f"{used:,} of {most:,} are asked for on that day"
            )
            continue
        room[day] = used + images
        kept.append(tick)
    return kept, reasons


def day_of(tick: datetime) -> str:
    """The day of a tick in its own time zone: `2026-11-24`."""
    return f"{tick:%Y-%m-%d}"
