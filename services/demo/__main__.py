"""python -m services.demo run [CONFIG] | serve"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from services.common.errors import QuerentError
from services.demo.processes import Interrupted, ending_signals_raise
from services.demo.run import run_demo
from services.demo.serve import serve_models
from services.demo.state import State, only_demo


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m services.demo", description="Run or serve a whole Querent.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run a campaign with a Redis, an inference service and a worker")
    run.add_argument("config", nargs="?", type=Path, help="a campaign's YAML file (default: the CIFAR-10 demo)")
    commands.add_parser("serve", help="serve the models of this checkout until Ctrl-C")
    given = parser.parse_args(arguments)
    state, console = State(Path(".querent")), Console()
    try:
        with ending_signals_raise():
            if given.command == "serve":
                serve_models(state, console)
            else:
                with only_demo(state):
                    run_demo(given.config, state, console)
    except Interrupted as interrupted:
        console.print(f"\n{interrupted}; everything that was started has ended")
        # Ending a server by Ctrl-C is how it is meant to end.
        return 0 if given.command == "serve" else 128 + interrupted.signum
    except (QuerentError, OSError) as error:
        Console(stderr=True).print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
