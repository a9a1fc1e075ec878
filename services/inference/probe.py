"""`python -m services.inference.probe [readiness]`: asks the replica beside it for its health, as a container's check.

Exit code 0 when it is SERVING; else 1 and one line that says what was answered.
"""

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.inference.settings import Settings

_TIMEOUT_S = 3.0


def trouble(port: int, service: str, timeout_s: float = _TIMEOUT_S) -> str:
    """Why `service` does not count as healthy on this machine; empty when it does."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=service), timeout=timeout_s
            )
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
    name = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return "" if answer.status == health_pb2.HealthCheckResponse.SERVING else name


def main() -> int:
    settings = Settings()
    service = sys.argv[1] if len(sys.argv) > 1 else "readiness"
    if settings.tls_cert_file and settings.health_port is None:
        print("probe: the gRPC port wants TLS; set INFERENCE_HEALTH_PORT to a port for probes", file=sys.stderr)
        return 1
    port = settings.grpc_port if settings.health_port is None else settings.health_port
    found = trouble(port, service)
    if found:
        print(f"probe: {service} on port {port}: {found}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
