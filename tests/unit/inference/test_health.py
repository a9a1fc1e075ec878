from grpc_health.v1.health_pb2 import HealthCheckResponse

from services.inference.changes import Changes
from services.inference.health import CONNECTIONS, READINESS, Health


def test_a_leaving_replica_is_not_ready_at_once_and_sends_its_clients_away_later() -> None:
    health = Health(["a.Service"], lambda: {"tiny": 1}, Changes())
    health.set_ready(True)
    names = ("", READINESS, "a.Service", "tiny")
    assert {health.status(name) for name in (*names, CONNECTIONS)} == {HealthCheckResponse.SERVING}
    health.leave()
    assert {health.status(name) for name in names} == {HealthCheckResponse.NOT_SERVING}
    assert health.status(CONNECTIONS) == HealthCheckResponse.SERVING
    health.send_away()
    assert health.status(CONNECTIONS) == HealthCheckResponse.NOT_SERVING
