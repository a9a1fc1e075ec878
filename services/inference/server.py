"""`al-inference serve`: runs the service until a signal, then drains it."""

import asyncio
import signal
import sys
from typing import NoReturn

import typer
import uvloop
from pydantic import ValidationError

from services.common.ending import leave
from services.common.errors import BadConfig, Conflict
from services.common.observability import configure_logging
from services.inference.memory import give_back_large_blocks
from services.inference.service import InferenceServer
from services.inference.settings import Settings


async def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT; a second signal ends the lame-duck time."""
    stop, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    server = InferenceServer(settings)
    starting = asyncio.create_task(server.start())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        starting.result()
    await stopping
    starting.cancel()
    await server.stop(settings.lame_duck_seconds, hurry)


app = typer.Typer(add_completion=False, no_args_is_help=True, help="Querent's inference service.")


@app.callback()
def _commands() -> None:
    """Keeps `serve` a subcommand, so that others can stand beside it."""


@app.command("serve")
def serve_command() -> None:
    """Serve the models of a registry over gRPC until Ctrl-C or SIGTERM.

    Configuration comes from the environment: INFERENCE_GRPC_PORT (8001), INFERENCE_METRICS_PORT (8002),
    INFERENCE_REGISTRY_DIR (.querent/registry), INFERENCE_MODELS (all), INFERENCE_DEVICE (auto), ...

    Examples:

      al-inference serve

      INFERENCE_REGISTRY_DIR=/models INFERENCE_GRPC_HOST=0.0.0.0 al-inference serve

      INFERENCE_MODELS=cifar10-demo-1 INFERENCE_GRPC_PORT=9001 INFERENCE_LOG_STYLE=console al-inference serve
    """
    try:
        settings = Settings()
    except ValidationError as error:
        _fail("\n".join(_mistake(e["loc"], e["msg"]) for e in error.errors()))
    configure_logging(settings.log_level, settings.log_style)
    give_back_large_blocks()
    try:
        uvloop.run(serve(settings))
    except (BadConfig, Conflict) as error:
        _fail(str(error))
    leave()


def _mistake(location: tuple[int | str, ...], message: str) -> str:
    name = str(location[0]) if location else "SETTINGS"
    return f"{name if name.isupper() else f'INFERENCE_{name.upper()}'}: {message}"


def _fail(message: str) -> NoReturn:
    print(f"al-inference: {message}", file=sys.stderr)
    raise SystemExit(1)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
