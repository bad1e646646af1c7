"""The commands."""

import importlib.metadata
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from raynest_pipeline.chain.link import UNSEEN
from raynest_pipeline.cli.view import View, changes_table, links_table, show_error, times_table
from raynest_pipeline.errors import (
    InputError,
    NotReadyError,
    RaynestError,
    UnreachableError,
    exit_code_of,
)
from raynest_pipeline.settings import Settings, load_settings

app = typer.Typer(
    name="raynest",
    help="From an Alibaba Cloud account, or a laptop, to batches of generated images on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# Without a terminal nobody has a width: tables are cut for nobody.
out = Console(highlight=False, width=None if sys.stdout.isatty() else 200)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")]
Prompts = Annotated[
    Path | None, typer.Option("--prompts", help="CSV, JSONL, TXT or Parquet file, or a prompt set (YAML).")
]
OutDir = Annotated[
    str | None,
    typer.Option("--out", help="Folder or URL (oss://, s3://, gs://) for batches; default: the settings'."),
]


INTERRUPTED = 130


def main() -> None:
    """Run the command line; every `RaynestError` ends as words and an exit code."""
    console = Console(stderr=True, highlight=False)
    code: int | str | None
    try:
        app()
        code = 0
    except RaynestError as error:
        show_error(console, error, as_json="--json" in sys.argv)
        code = exit_code_of(error)
    except SystemExit as end:
        # Typer's own way out, also after Ctrl-C, which it swallows without a word.
        code = end.code
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code == INTERRUPTED:
        console.print("Interrupted. Run the same command again: it goes on from here.")
    sys.exit(code)


def _version(wanted: bool) -> None:
    if wanted:
        print(importlib.metadata.version("raynest"))
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def up(as_json: Json = False) -> None:
    """Bring the whole chain up: cluster, public address, kubeconfig, RayService. What is ready is reused."""
    from raynest_pipeline.cli.jobs import run_job
    from raynest_pipeline.defs.chain.jobs import PROVISION

    settings = load_settings()
    view = View(quiet=as_json)
    run_job(settings, PROVISION, view)
    if as_json:
        _print_json(_report(settings))
    else:
        out.print(times_table(view.links))


@app.command()
def generate(
    prompts: Prompts = None,
    out_dir: OutDir = None,
    batch: Annotated[str | None, typer.Option("--batch", help="Batch id; default: from the file.")] = None,
    engine: Annotated[
        str | None, typer.Option("--engine", help="http | ray (a Ray Job); default: the settings'.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make the images of a prompt file or prompt set. A second run of it makes only what is missing."""
    if engine not in (None, "http", "ray"):
        raise InputError(f"There is no engine {engine!r}.", fix="raynest generate --engine http | ray")
    settings = load_settings()
    outcome = run_generate(
        settings, prompts or settings.batch.prompts, out_dir, batch, View(quiet=as_json), engine
    )
    result = outcome.result
    document = {
        "batch": outcome.folder.batch_id,
        "folder": outcome.folder.place(),
        "sheet": str(outcome.folder.sheet_path),
        "manifest": str(outcome.folder.manifest_path),
        "images": outcome.images,
        "made": result.made,
        "reused": result.reused,
        "failed": result.failed,
        "seconds": round(result.seconds, 2),
        "model": result.model,
    }
    if as_json:
        _print_json(document)
    else:
        for key in ("batch", "images", "made", "reused", "failed", "model", "folder", "sheet"):
            out.print(f"{key + ':':<8} {document[key]}", soft_wrap=True)


def run_generate(
    settings: Settings,
    prompts: Path,
    out_dir: str | None,
    batch: str | None,
    view: View,
    engine: str | None = None,
) -> Any:
    """Run the generate_batch job on a prompt file; returns its `Outcome`."""
    from raynest_pipeline.cli.jobs import run_job
    from raynest_pipeline.defs.images.jobs import GENERATE
    from raynest_pipeline.images.batch import Outcome, batch_id_for
    from raynest_pipeline.images.batch_store import root_of
    from raynest_pipeline.images.prompt_file import open_prompts

    # Checked here, before Dagster and the chain are even loaded: a bad file must cost nothing.
    checked = open_prompts(prompts)
    config: dict[str, Any] = {"prompts": str(prompts.absolute())}
    if out_dir is not None:
        config["out"] = str(root_of(out_dir))
    if engine is not None:
        config["engine"] = engine
    partition = batch or batch_id_for(checked)
    run_job(settings, GENERATE, view, partition=partition, ops={"batch_images": {"config": config}})
    return next(result for result in view.results if isinstance(result, Outcome))


@app.command()
def imagine(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="PNG file to write.")] = Path("output.png"),
    seed: Annotated[int | None, typer.Option(help="Same seed, same image.")] = None,
    size: Annotated[int | None, typer.Option(help="Width and height, pixels; a multiple of 8.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="How closely to follow the prompt.")] = None,
    negative: Annotated[str | None, typer.Option(help="What to avoid.")] = None,
) -> None:
    """Draw one image and write it to a file."""
    from raynest_pipeline.cli.imagine import draw
    from raynest_pipeline.images.prompts import make_prompt

    wanted = make_prompt(
        prompt, seed=seed, size=size, steps=steps, guidance=guidance, negative_prompt=negative
    )
    image = draw(load_settings(), wanted, output)
    model = f" by {image.model}" if image.model else ""
    used = wanted.seed if image.seed is None else image.seed
    out.print(f"{output} {image.width}x{image.height} seed {used}{model}")


@app.command()
def status(as_json: Json = False) -> None:
    """Look at every link. Exit code 0 if all are ready, 5 if not, 7 if something could not be looked at."""
    report = _report(load_settings())
    if as_json:
        _print_json(report)
    else:
        out.print(links_table(report))
        out.print(f"kubeconfig: {report.kubeconfig}", soft_wrap=True)
        if report.endpoint:
            out.print(f"endpoint:   {report.endpoint}  (raynest open endpoint)", soft_wrap=True)
            out.print(f"dashboard:  {report.dashboard}  (raynest open dashboard)", soft_wrap=True)
    if not report.ready:
        unseen = any(link.state == "unknown" for link in report.links)
        raise typer.Exit(7 if unseen else 5)


@app.command()
def plan(as_json: Json = False) -> None:
    """Show what `up` would change, and at which price, without changing anything."""
    from raynest_pipeline.cli.jobs import run_job
    from raynest_pipeline.defs.chain.jobs import PLAN

    view = View(quiet=as_json)
    run_job(load_settings(), PLAN, view)
    changes = next(result for result in view.results if isinstance(result, list))
    if as_json:
        _print_json([vars(change) for change in changes])
    else:
        out.print(changes_table(changes))
    if any(change.action == UNSEEN for change in changes):
        raise typer.Exit(UnreachableError.exit_code)


@app.command()
def down(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False, as_json: Json = False
) -> None:
    """Take down what raynest made, and only that; then audit what is left. Images and records stay."""
    from raynest_pipeline.cli.jobs import run_job
    from raynest_pipeline.cli.teardown import stop_sandbox_if_empty
    from raynest_pipeline.defs.chain.jobs import TEARDOWN

    settings = load_settings()
    if not yes:
        if not sys.stdin.isatty():
            raise InputError(
                "`raynest down` asks before it deletes.", fix="Give --yes where nobody can answer."
            )
        typer.confirm(f"Delete the chain {settings.name!r} of profile {settings.profile}?", abort=True)
    view = View(quiet=as_json)
    run_job(settings, TEARDOWN, view)
    done = view.results[-1]
    stopped = stop_sandbox_if_empty(settings)
    if as_json:
        _print_json({"changes": [vars(change) for change in done.changes], "left": list(done.left)})
        return
    out.print(changes_table(done.changes) if done.changes else "There was nothing to remove.")
    out.print("Audit: nothing is left." + (" The sandbox has stopped." if stopped else ""))


@app.command()
def doctor(
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Also do a CUDA check on a GPU worker of the running cluster.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check this machine and the settings, and say what to do about what is wrong."""
    from raynest_pipeline.cli.doctor import examine, examine_cluster

    findings = [*examine(), *(examine_cluster() if cluster else [])]
    if as_json:
        _print_json([vars(finding) for finding in findings])
    else:
        for finding in findings:
            mark = {True: "[green]ok[/]", False: "[red]no[/]", None: "[yellow]--[/]"}[finding.ok]
            out.print(f"{mark}  {finding.what}: {finding.found}", soft_wrap=True)
            if finding.ok is not True and finding.fix:
                out.print(f"      {finding.fix}", soft_wrap=True)
    if any(finding.ok is False for finding in findings):
        raise typer.Exit(NotReadyError.exit_code)


@app.command()
def kubeconfig() -> None:
    """Path of the kubeconfig, renewed if due: kubectl --kubeconfig "$(raynest kubeconfig)" get pods"""
    from raynest_pipeline.chain.profile import open_chain

    chain = open_chain(load_settings(), start_sandbox=False)
    # Opening it renews a credential that is running out.
    with chain.kube():
        print(chain.kubeconfig_path)


@app.command("open")
def open_command(
    what: Annotated[str, typer.Argument(help="dashboard | endpoint | gallery")],
    port: Annotated[int, typer.Option(help="On 127.0.0.1; 0: a free one.")] = 0,
) -> None:
    """Serve the Ray dashboard, the endpoint or the gallery on a loopback address, until Ctrl-C."""
    from raynest_pipeline.cli.forward import forward
    from raynest_pipeline.cli.gallery import open_gallery

    if what == "gallery":
        open_gallery(load_settings(), port, lambda url: out.print(f"{what}: {url}   (Ctrl-C ends)"))
        return
    if what not in ("dashboard", "endpoint"):
        raise InputError(f"There is no {what!r} to open.", fix="raynest open dashboard | endpoint | gallery")
    forward(load_settings(), what, port, lambda url: out.print(f"{what}: {url}   (Ctrl-C ends)"))


@app.command()
def dev(port: Annotated[int, typer.Option(help="Of the UI, on 127.0.0.1.")] = 3000) -> None:
    """Run the Dagster UI with its sensors and schedule, and the gallery, on the state of this home."""
    from raynest_pipeline.cli.dev import run_dev

    raise typer.Exit(run_dev(load_settings(), port))


@app.command()
def demo(prompts: Prompts = None, out_dir: OutDir = None) -> None:
    """The whole way: chain up, the example prompts drawn, every image checked, and what to look at next."""
    from raynest_pipeline.cli.demo import run_demo

    run_demo(load_settings(), prompts, out_dir, out)


def _report(settings: Settings) -> Any:
    from raynest_pipeline.chain.profile import open_chain
    from raynest_pipeline.chain.report import absent_report, status_report
    from raynest_pipeline.chain.watch import observe_within

    try:
        chain = open_chain(settings, start_sandbox=False)
    except NotReadyError as error:
        return absent_report(settings, error.what)
    return status_report(chain, observe_within(chain.links, 60))


def _print_json(document: Any) -> None:
    if hasattr(document, "model_dump"):
        document = document.model_dump(mode="json")
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + os.linesep)


def _register_sandbox() -> None:
    from raynest_pipeline.cli.sandbox import sandbox_app

    app.add_typer(sandbox_app, name="sandbox")


def _register_prompts() -> None:
    from raynest_pipeline.cli.prompts import prompts_app

    app.add_typer(prompts_app, name="prompts")


_register_prompts()
_register_sandbox()
