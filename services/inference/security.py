"""Who may call what: bearer tokens of two scopes, compared in constant time."""

import hashlib
import hmac
import ipaddress
from collections.abc import Callable, Iterable

import structlog

from services.common.errors import Forbidden, QuerentError, Unauthenticated
from services.common.tokens import Tokens

log = structlog.get_logger()

Metadata = Iterable[tuple[str, str | bytes]]
Gate = Callable[[str, Metadata], QuerentError | None]

# What the probes of an orchestrator call; they have no token.
_OPEN_SERVICE = "/grpc.health.v1.Health/"
_REFLECTION = ("/grpc.reflection.v1alpha.ServerReflection/", "/grpc.reflection.v1.ServerReflection/")
# Everything that is not here needs an admin token, also what will be added some day.
_PREDICT_SCOPE = frozenset(
    f"/{service}/{method}"
    for service, methods in {
        "querent.v1.PredictionService": ("Predict", "Feedback"),
        "querent.v1.ModelRegistryService": ("GetModel", "ListModels", "WatchModel"),
        "inference.GRPCInferenceService": (
            *("ServerLive", "ServerReady", "ServerMetadata"),
            *("ModelReady", "ModelMetadata", "ModelConfig", "ModelInfer", "ModelStatistics"),
        ),
    }.items()
    for method in methods
)
# The same for a missing token and a wrong one.
_UNAUTHENTICATED = "a valid token is needed: send the metadata 'authorization: Bearer <token>'"
_FORBIDDEN = "this token may predict only; the method needs an admin token"


def make_gate(predict: Tokens, admin: Tokens) -> Gate:
    """Why a call of `method` ("/package.Service/Method") with this metadata is refused; None: it is not.

    Without any token configured every call passes.
    """
    if not (predict or admin):
        return lambda _method, _metadata: None

    def gate(method: str, metadata: Metadata) -> QuerentError | None:
        if method.startswith(_OPEN_SERVICE):
            return None
        digest = _digest(_presented(metadata))
        # Both, whatever the first says: the time taken tells nothing.
        may_predict, may_all = _is_one_of(digest, predict.current()), _is_one_of(digest, admin.current())
        if not (may_predict or may_all):
            return Unauthenticated(_UNAUTHENTICATED)
        if may_all or method in _PREDICT_SCOPE or method.startswith(_REFLECTION):
            return None
        return Forbidden(_FORBIDDEN)

    return gate


def warn_of_open_doors(host: str, encrypted: bool, authenticated: bool, tokens: bool) -> None:
    """Log lines for an operator who listens to a network: for callers of any kind, and for tokens in clear text."""
    if _is_loopback(host):
        return
    if not authenticated:
        log.warning(
            "unauthenticated_listener",
            host=host,
            consequence="whoever reaches the port may call everything; set INFERENCE_ADMIN_TOKEN_FILE and "
            "INFERENCE_PREDICT_TOKEN_FILE, or INFERENCE_TLS_CLIENT_CA_FILE",
        )
    if tokens and not encrypted:
        log.warning(
            "tokens_without_tls",
            host=host,
            consequence="tokens cross the network in clear text; set INFERENCE_TLS_CERT_FILE and _KEY_FILE",
        )


def _presented(metadata: Metadata) -> str:
    """The token of the one authorization entry; empty when there is none, several or another scheme."""
    found = [value for key, value in metadata if key == "authorization"]
    if len(found) != 1 or not isinstance(found[0], str):
        return ""
    scheme, _, token = found[0].partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _is_one_of(digest: bytes, tokens: Iterable[str]) -> bool:
    found = False
    for token in tokens:  # all of them, for the same reason
        found |= hmac.compare_digest(digest, _digest(token))
    return found


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
