"""What a person sees while a job works: bars on a terminal, plain lines elsewhere, nothing with --json."""

import json
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from raynest_pipeline.chain.link import Change, Observation, State, Step
from raynest_pipeline.chain.report import StatusReport
from raynest_pipeline.errors import RaynestError
from raynest_pipeline.images.result import Progress as BatchProgress

COLOURS = {
    State.READY: "green",
    State.PENDING: "yellow",
    State.MISSING: "cyan",
    State.BROKEN: "red",
    State.UNKNOWN: "magenta",
}
PLAIN_EVERY_SECONDS = 10.0
"""Without a terminal, batch progress is a line at this pace."""


class View:
    """Listens to a job and shows it. Also keeps what scripts and the end table want to know."""

    def __init__(self, *, quiet: bool = False) -> None:
        # No markup: messages are the servers' own words, brackets and all.
        self.console = Console(stderr=True, quiet=quiet, highlight=False, markup=False)
        self.links: list[Observation] = []
        self.error: RaynestError | None = None
        self.results: list[Any] = []
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, str] = {}
        self._batch_said = 0.0
        self._bars: Progress | None = None
        if self.console.is_terminal and not quiet:
            self._bars = Progress(
                SpinnerColumn(),
                TextColumn("[bold]{task.fields[link]:<12}"),
                BarColumn(bar_width=24),
                TimeElapsedColumn(),
                TextColumn("{task.description}", markup=False),
                console=self.console,
            )

    def __enter__(self) -> "View":
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()

    def __call__(self, event: Any) -> None:
        """Take one event of `defs.progress`."""
        if isinstance(event, Step):
            self._step(event.link, event.message, event.fraction)
        elif isinstance(event, Observation):
            self.links.append(event)
            seconds = event.facts.get("seconds", 0)
            self._finish(event.link, f"{event.state} in {seconds} s")
        elif isinstance(event, BatchProgress):
            self._batch(event)
        elif isinstance(event, RaynestError):
            self.error = event
        else:
            self.results.append(event)

    def _step(self, link: str, message: str, fraction: float | None) -> None:
        if self._bars is None:
            if self._said.get(link) != message:
                self._said[link] = message
                self.console.print(f"{link}: {message}", soft_wrap=True)
            return
        task = self._task(link)
        total = 1.0 if fraction is not None else None
        self._bars.update(task, description=message[:100], completed=fraction or 0.0, total=total)

    def _finish(self, link: str, message: str) -> None:
        if self._bars is None:
            self.console.print(f"{link}: {message}", soft_wrap=True)
            return
        self._bars.update(self._task(link), description=message, completed=1.0, total=1.0)

    def _batch(self, progress: BatchProgress) -> None:
        over = progress.total is not None and progress.done >= progress.total
        now = time.monotonic()
        if self._bars is None:
            if over or now - self._batch_said >= PLAIN_EVERY_SECONDS:
                self._batch_said = now
                self.console.print(f"images: {progress}", soft_wrap=True)
            return
        self._bars.update(
            self._task("images"), description=str(progress), completed=progress.done, total=progress.total
        )

    def _task(self, link: str) -> TaskID:
        assert self._bars is not None
        if link not in self._tasks:
            self._tasks[link] = self._bars.add_task("", total=None, link=link)
        return self._tasks[link]


def links_table(report: StatusReport) -> Table:
    """The links, for `status`."""
    table = Table("link", "state", "what", box=None, pad_edge=False)
    for link in report.links:
        what = link.cause or ", ".join(f"{key}={value}" for key, value in list(link.facts.items())[:4])
        table.add_row(link.name, f"[{COLOURS[link.state]}]{link.state}[/]", Text(what))
    return table


def times_table(links: Sequence[Observation]) -> Table:
    """The links with their times, at the end of a run."""
    table = Table("link", "state", "seconds", "", "id", box=None, pad_edge=False)
    keys = ("instance_id", "ip", "path", "ray_cluster")
    for seen in links:
        known = next((str(seen.facts[key]) for key in keys if seen.facts.get(key)), "")
        reused = "reused" if seen.facts.get("reused") else ""
        seconds = f"{float(str(seen.facts.get('seconds', 0))):.1f}"
        table.add_row(seen.link, f"[{COLOURS[seen.state]}]{seen.state}[/]", seconds, reused, Text(known))
    return table


def changes_table(changes: Sequence[Change]) -> Table:
    """A plan, or what a teardown did."""
    table = Table("link", "action", "what", "why", box=None, pad_edge=False)
    for change in changes:
        table.add_row(change.link, change.action, Text(change.what), Text(change.why))
    return table


def show_error(console: Console, error: RaynestError, *, as_json: bool) -> None:
    """An error for people on stderr, or for scripts on stdout."""
    if as_json:
        print(json.dumps({"error": {"what": error.what, "why": error.why, "fix": error.fix}}))
        return
    console.print(f"[bold red]{_escaped(error.what)}[/]", soft_wrap=True)
    if error.why:
        console.print(f"[bold]Why:[/] {_escaped(error.why)}", soft_wrap=True)
    if error.fix:
        console.print(f"[bold]What to do:[/] {_escaped(error.fix)}", soft_wrap=True)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
