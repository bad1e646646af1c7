"""`raynest sandbox`: the embedded emulator, by hand."""

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from raynest_pipeline.errors import InputError, NotReadyError
from raynest_pipeline.settings import load_settings

sandbox_app = typer.Typer(
    help="The embedded sandbox: an emulated cloud and Kubernetes API over a real local Ray.",
    no_args_is_help=True,
)
out = Console(highlight=False)


@sandbox_app.command("start")
def start() -> None:
    """Start it, or say that it runs."""
    from raynest_pipeline.chain.profile import with_sandbox
    from raynest_pipeline.sandbox import control

    settings = load_settings()
    with_sandbox(settings, start=True)
    info = control.status(settings.sandbox_dir)
    assert info is not None
    out.print(f"running, pid {info.pid}; log: {info.log_path}", soft_wrap=True)


@sandbox_app.command("stop")
def stop() -> None:
    """Stop it and the Ray it started. Its state stays; the next start goes on with it."""
    from raynest_pipeline.sandbox import control

    try:
        stopped = control.stop(load_settings().sandbox_dir)
    except control.SandboxError as error:
        raise NotReadyError("The sandbox does not stop.", why=str(error)) from None
    out.print("stopped" if stopped else "it was not running")


@sandbox_app.command("status")
def status(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document, nothing else.")] = False,
) -> None:
    """Show where it listens, what it has sold, its faults and its processes. Exit code 5 if not running."""
    from raynest_pipeline.sandbox import control

    directory = load_settings().sandbox_dir
    info = control.status(directory)
    document: dict[str, Any] = {"running": info is not None}
    if info is not None:
        document |= {
            "pid": info.pid,
            "cloud_endpoint": info.cloud_endpoint,
            "region": info.region,
            "log": str(info.log_path),
            "ledger": control.ledger(directory),
            "faults": control.faults(directory),
            "processes": control.processes(directory),
        }
    if as_json:
        print(json.dumps(document, indent=2, default=str))
    else:
        _show(document)
    if info is None:
        raise typer.Exit(NotReadyError.exit_code)


def _show(document: dict[str, Any]) -> None:
    if not document["running"]:
        out.print("not running")
        return
    for key in ("pid", "cloud_endpoint", "region", "log", "faults", "processes"):
        out.print(f"{key}: {document[key]}", soft_wrap=True)
    table = Table("bought", "id", "name", "per hour", box=None, pad_edge=False)
    for item in document["ledger"]:
        table.add_row(*(str(item.get(key, "")) for key in ("kind", "id", "name", "hourly_price")))
    out.print(table if document["ledger"] else "ledger: empty")


@sandbox_app.command("fault")
def fault(
    name: Annotated[str | None, typer.Argument(help="Which; without one: list them.")] = None,
    values: Annotated[list[str] | None, typer.Argument(help="Parameters, KEY=VALUE.")] = None,
    clear: Annotated[bool, typer.Option("--clear", help="End it (without a name: all).")] = False,
) -> None:
    """Make it misbehave: raynest sandbox fault deploy_failed message="out of memory" """
    from raynest_pipeline.sandbox import control
    from raynest_pipeline.sandbox.faults import FAULTS

    directory = load_settings().sandbox_dir
    if name is not None and name not in FAULTS:
        raise InputError(f"There is no fault {name!r}.", fix=f"Choose one of: {', '.join(FAULTS)}.")
    if name is None and not clear:
        for spec in FAULTS.values():
            out.print(f"[bold]{spec.name}[/]  {spec.does}", soft_wrap=True)
        return
    try:
        if clear:
            control.clear_faults(directory, name)
            out.print("cleared")
        elif name is not None:
            control.set_fault(directory, name, **dict(_pair(value) for value in values or []))
            out.print(f"{name} is set; `raynest sandbox fault {name} --clear` ends it")
    except control.SandboxError as error:
        raise NotReadyError(
            "The fault cannot be set.", why=str(error), fix="Is the sandbox running?"
        ) from None


def _pair(text: str) -> tuple[str, Any]:
    key, sign, value = text.partition("=")
    if not sign:
        raise InputError(f"{text!r} is not KEY=VALUE.")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value
