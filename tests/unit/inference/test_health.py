from grpc_health.v1.health_pb2 import HealthCheckResponse

from services.inference.changes import Changes
from services.inference.health import CONNECTIONS, LIVENESS, READINESS, STARTUP, Health


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


def test_liveness_is_about_the_process_alone() -> None:
    health = Health([], lambda: {"tiny": 0}, Changes(), saturated=lambda: True)
    assert health.status(LIVENESS) == HealthCheckResponse.SERVING
    health.leave()
    health.send_away()
    assert health.status(LIVENESS) == HealthCheckResponse.SERVING


def test_startup_is_over_once_and_for_all() -> None:
    health = Health([], lambda: {}, Changes())
    assert health.status(STARTUP) == HealthCheckResponse.NOT_SERVING
    health.set_started()
    health.set_ready(False)
    health.leave()
    assert health.status(STARTUP) == HealthCheckResponse.SERVING


def test_a_full_queue_takes_readiness_away_until_there_is_room() -> None:
    full = [False]
    health = Health(["a.Service"], lambda: {}, Changes(), saturated=lambda: full[0])
    health.set_ready(True)
    assert health.status(READINESS) == HealthCheckResponse.SERVING
    full[0] = True
    assert health.status(READINESS) == HealthCheckResponse.NOT_SERVING
    assert health.status("a.Service") == HealthCheckResponse.SERVING
    full[0] = False
    assert health.status(READINESS) == HealthCheckResponse.SERVING
