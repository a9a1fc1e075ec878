"""`make serve`: the models of this checkout's registry, until Ctrl-C."""

import os
from contextlib import suppress

from rich.console import Console

from services.common.errors import Conflict, DamagedArtefact, NotFound
from services.common.registry import Registry
from services.demo import data
from services.demo.ports import require_free
from services.demo.processes import ProcessFailed, Supervisor
from services.demo.services import INFERENCE_METRICS_PORT, INFERENCE_PORT, Ports, start_inference
from services.demo.state import State


def serve_models(state: State, console: Console) -> None:
    """Blocks until a signal raises Interrupted. Raises NotFound without models, Conflict for a port in use."""
    served = _promoted(state)
    ports = Ports(
        _port("INFERENCE_GRPC_PORT", INFERENCE_PORT), _port("INFERENCE_METRICS_PORT", INFERENCE_METRICS_PORT), 0
    )
    require_free(ports.inference, "INFERENCE_GRPC_PORT")
    require_free(ports.inference_metrics, "INFERENCE_METRICS_PORT")
    data_dir = {"QUERENT_DATA_DIR": str(data.given_data_dir(state, os.environ))}
    env = {**state.environment(os.environ), **ports.environment(), **data_dir}
    with Supervisor(state.logs) as supervisor:
        with console.status("starting the inference service"):
            child = start_inference(supervisor, env, ports)
        _tell(served, ports, state, console)
        code = supervisor.wait_end(child)
        raise ProcessFailed(f"the inference service ended with exit code {code}; {child.log} tells why")


def _promoted(state: State) -> dict[str, int]:
    """Campaign -> promoted version, newest promotion last. Raises NotFound when there is none."""
    registry = Registry(state.registry)
    promoted: dict[str, int] = {}
    for name in registry.campaigns():
        with suppress(DamagedArtefact):  # inference says so, and serves the others
            version = registry.current(name)
            if version is not None:
                promoted[name] = version
    if not promoted:
        raise NotFound(f"{state.registry} has no model to serve yet; run 'make demo' first")
    return dict(sorted(promoted.items(), key=lambda item: (state.registry / item[0] / "current").stat().st_mtime))


def _port(variable: str, default: int) -> int:
    """Raises Conflict for what is no port."""
    given = os.environ.get(variable, "")
    if given and not (given.isdecimal() and 0 < int(given) < 65_536):
        raise Conflict(f"{variable} is {given!r}; it must be a port from 1 to 65535")
    return int(given) if given else default


def _tell(served: dict[str, int], ports: Ports, state: State, console: Console) -> None:
    newest = list(served)[-1]
    models = ", ".join(f"{name} version {version}" for name, version in served.items())
    console.print(f"serving {models}", highlight=False)
    console.print(
        f"gRPC on {ports.address}, metrics on http://127.0.0.1:{ports.inference_metrics}/metrics, log in "
        f"{state.logs}/inference.log; Ctrl-C ends it",
        highlight=False,
    )
    console.print("\nIn another terminal:")
    address = "" if ports.inference == INFERENCE_PORT else f" --address {ports.address}"
    console.print(f"  .venv/bin/al-predict {state.samples}/ --model {newest}{address}", highlight=False)
    console.print(
        f"""  grpcurl -plaintext -d '{{"model": "{newest}"}}' {ports.address} """
        "querent.v1.ModelRegistryService/GetModel",
        highlight=False,
        soft_wrap=True,
    )
