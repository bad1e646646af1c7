"""`python -m raynest_pipeline.sandbox serve|status|stop --state DIR`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from raynest_pipeline.sandbox import control


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit status: 0 = done, 1 = nothing is running there, 2 = wrong arguments."""
    parser = argparse.ArgumentParser(prog="python -m raynest_pipeline.sandbox", description=__doc__)
    parser.add_argument("command", choices=("serve", "status", "stop"))
    parser.add_argument("--state", type=Path, required=True, help="the state folder")
    parser.add_argument("--options", default="{}", help="SandboxOptions as JSON (serve)")
    given = parser.parse_args(arguments)
    state_dir: Path = given.state.absolute()
    if given.command == "serve":
        return _serve(state_dir, given.options)
    if given.command == "stop":
        stopped = control.stop(state_dir)
        print("stopped" if stopped else f"no sandbox is running in {state_dir}")
        return 0 if stopped else 1
    info = control.status(state_dir)
    print(info or f"no sandbox is running in {state_dir}")
    return 0 if info else 1


def _serve(state_dir: Path, options: str) -> int:
    from raynest_pipeline.sandbox.server import serve

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    os.umask(0o077)
    state_dir.mkdir(parents=True, exist_ok=True)
    try:
        serve(state_dir, control.SandboxOptions.from_json(options))
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
