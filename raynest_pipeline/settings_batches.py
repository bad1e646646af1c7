"""The sections of the settings that say where batches come from, and how they are shown."""

from pathlib import Path
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, Field

from raynest_pipeline.settings_sections import Section

CRON_FIELDS = 5


def _valid_cron(text: str) -> str:
    from datetime import datetime

    if len(text.split()) != CRON_FIELDS:
        raise ValueError("must have five fields: minute, hour, day of month, month, day of week")
    try:
        next(CronSim(text, datetime(2026, 1, 1)))
    except CronSimError as error:
        raise ValueError(f"is not a cron expression: {str(error).lower()}") from None
    except StopIteration:
        raise ValueError("never comes true") from None
    return text


def _valid_timezone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError("is not a time zone of the IANA database, such as Europe/Berlin") from None
    return name


class Inbox(Section):
    """Prompt files that are dropped somewhere and become batches."""

    url: str | None = Field(
        None,
        description="Folder, or prefix of an object store (oss://, s3://), that the sensor `inbox` looks "
        "into. Unset: <home>/inbox.",
    )
    interval_seconds: int = Field(30, ge=5, description="Between two looks.")
    settle_seconds: float = Field(
        20,
        ge=0,
        description="So long a file's size and time must stay the same, over two looks at least, before it "
        "is taken for whole.",
    )
    max_files: int = Field(20, ge=1, le=500, description="Files judged in one look; the rest wait.")
    check_mb: float = Field(
        8,
        gt=0,
        description="Files up to this size (Parquet: an eighth) are checked before they become a batch; "
        "larger ones by the batch's own run, since a sensor has 60 s.",
    )
    max_mb: float = Field(
        2_000,
        gt=0,
        description="Larger files go to bad/: they could not be copied in a sensor's 60 s. "
        "`raynest generate --prompts` takes any size.",
    )


class Schedule(Section):
    """The schedule `daily_batch`."""

    cron: Annotated[str, AfterValidator(_valid_cron)] = Field(
        "0 6 * * *", description="When a batch is made: minute, hour, day of month, month, day of week."
    )
    timezone: Annotated[str, AfterValidator(_valid_timezone)] = Field(
        "UTC", description="Of the cron expression; an IANA name such as Europe/Berlin."
    )
    prompts: Path | None = Field(None, description="Prompt file or prompt set. Unset: batch.prompts.")
    catch_up: Literal["skip", "latest", "all"] = Field(
        "latest",
        description="What becomes of ticks that were missed while no daemon ran: none is made up for, the "
        "latest, or all since the last batch of the schedule.",
    )
    late_seconds: int = Field(
        600, ge=60, description="A tick that is older than this has been missed (catch_up)."
    )
    max_catch_up: int = Field(7, ge=1, le=100, description="Most ticks that `all` makes up for.")
    max_images_per_day: int | None = Field(
        None,
        ge=1,
        description="Images that the schedule may ask for in one day of its time zone; a tick that would "
        "pass this is skipped. Unset: no limit.",
    )
    vary_seeds: bool = Field(
        False,
        description="Give each batch seeds of its own, so that the same prompts make new images every time.",
    )


class Gallery(Section):
    """The pages over the batches."""

    port: int = Field(
        3001,
        ge=0,
        le=65535,
        description="On 127.0.0.1, where `raynest dev` serves the gallery; links in the UI lead there. "
        "0: it serves none.",
    )
    thumbnail_pixels: int = Field(320, ge=64, le=1024, description="Longer side of a thumbnail.")
    max_thumbnails: int = Field(
        5_000, ge=0, description="Of one batch; images beyond are shown in full size."
    )
