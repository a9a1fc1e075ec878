"""TLS and tokens, over real channels."""

import asyncio
import shutil
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import psutil
import pytest
import structlog
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.client.aio import AsyncQuerentClient
from services.client.client import QuerentClient
from services.common.access import Access
from services.common.errors import BadConfig, Conflict, Forbidden, Unauthenticated
from services.inference.certificates import Certificates
from services.inference.service import InferenceServer
from tests.authorities import Authority
from tests.integration.inference.harness import Served, serving, settings
from tests.tiny_models import Folders, TinyModel, png, publish

REFUSED = {StatusCode.UNAUTHENTICATED, StatusCode.PERMISSION_DENIED}
OIP = "/inference.GRPCInferenceService/"
QUERENT = "/querent.v1."
PREDICTING = [
    *(f"{QUERENT}PredictionService/{name}" for name in ("Predict", "Feedback")),
    *(f"{QUERENT}ModelRegistryService/{name}" for name in ("GetModel", "ListModels", "WatchModel")),
    *(f"{OIP}{name}" for name in ("ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata")),
    *(f"{OIP}{name}" for name in ("ModelConfig", "ModelInfer", "ModelStatistics")),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
]
EVERYTHING_ELSE = [
    *(f"{QUERENT}PoolScoringService/{name}" for name in ("ScorePool", "Embed")),
    *(f"{OIP}{name}" for name in ("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload")),
]
OPEN = "/grpc.health.v1.Health/Check"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@pytest.fixture
def tls(authority: Authority) -> dict[str, object]:
    cert, key = authority.issue()
    return {"tls_cert_file": cert, "tls_key_file": key}


@pytest.fixture(autouse=True)
def promoted(folders: Folders) -> None:
    publish(folders.registry, TinyModel(), promote=True)


async def label_by(served: Served, access: Access) -> str:
    async with AsyncQuerentClient(served.address, timeout_s=5, access=access) as client:
        return (await client.predict([png()])).predictions[0].label


async def assert_does_not_connect(served: Served, access: Access) -> None:
    """The channel of our clients, but without their retries, which go on for seconds."""
    options = [("grpc.enable_retries", 0), ("grpc.ssl_target_name_override", access.server_name or "127.0.0.1")]
    pem = access.pem()
    channel = (
        grpc.aio.secure_channel(served.address, grpc.ssl_channel_credentials(pem.ca, pem.key, pem.cert), options)
        if pem
        else grpc.aio.insecure_channel(served.address, options)
    )
    async with channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(OPEN)(b"", timeout=10)
    assert caught.value.code() is StatusCode.UNAVAILABLE


async def code_of(served: Served, method: str, *tokens: str, key: str = "authorization") -> StatusCode:
    """What an empty message to `method` is answered; streams are read until the first answer."""
    call = served.channel.unary_stream(method)(b"", metadata=[(key, token) for token in tokens], timeout=5)
    try:
        await call.read()
    except grpc.aio.AioRpcError as error:
        return error.code()
    call.cancel()
    return StatusCode.OK


# TLS


async def test_both_clients_speak_tls_with_the_authority_of_the_server(
    folders: Folders, authority: Authority, tls: dict[str, object]
) -> None:
    def blocking(address: str) -> int:
        with QuerentClient(address, timeout_s=5, access=Access(ca_file=authority.ca_file)) as client:
            return client.predict([png()]).version

    async with serving(folders, **tls) as served:
        assert await label_by(served, Access(ca_file=authority.ca_file))
        assert await asyncio.to_thread(blocking, served.address) == 1


async def test_another_authority_clear_text_and_another_name_do_not_connect(
    folders: Folders, authority: Authority, tls: dict[str, object], tmp_path: Path
) -> None:
    other = Authority(tmp_path / "other")
    async with serving(folders, **tls) as served:
        for access in (
            Access(ca_file=other.ca_file),
            Access(),
            Access(ca_file=authority.ca_file, server_name="elsewhere.example"),
        ):
            await assert_does_not_connect(served, access)
        assert await label_by(served, Access(ca_file=authority.ca_file, server_name="localhost"))


async def test_mutual_tls_asks_for_a_certificate_of_the_clients_authority(
    folders: Folders, authority: Authority, tls: dict[str, object], tmp_path: Path
) -> None:
    clients = Authority(tmp_path / "clients")
    strangers = Authority(tmp_path / "strangers")
    async with serving(folders, **tls, tls_client_ca_file=clients.ca_file) as served:
        assert await label_by(served, Access(False, authority.ca_file, *clients.issue()))
        await assert_does_not_connect(served, Access(ca_file=authority.ca_file))
        await assert_does_not_connect(served, Access(False, authority.ca_file, *strangers.issue()))


async def test_new_connections_get_a_renewed_certificate_and_old_ones_go_on(
    folders: Folders, authority: Authority, tls: dict[str, object], tmp_path: Path
) -> None:
    renewed = Authority(tmp_path / "renewed")
    async with (
        serving(folders, **tls) as served,
        AsyncQuerentClient(served.address, access=Access(ca_file=authority.ca_file)) as before,
    ):
        await before.list_models()
        cert, key = renewed.issue()
        # Half replaced: what was goes on.
        Path(str(tls["tls_cert_file"])).write_bytes(cert.read_bytes())
        assert await label_by(served, Access(ca_file=authority.ca_file))
        Path(str(tls["tls_key_file"])).write_bytes(key.read_bytes())
        assert await label_by(served, Access(ca_file=renewed.ca_file))
        await assert_does_not_connect(served, Access(ca_file=authority.ca_file))
        await before.list_models()


async def test_a_certificate_that_is_replaced_while_the_server_starts_is_noticed(
    authority: Authority, tmp_path: Path
) -> None:
    cert, key = authority.issue()
    renewed_cert, renewed_key = Authority(tmp_path / "renewed").issue()

    class ReplacedWhenRead(type(key)):  # type: ignore[misc]
        def read_bytes(self) -> bytes:
            content = key.read_bytes()
            shutil.copyfile(renewed_cert, cert)
            shutil.copyfile(renewed_key, key)
            return content

    server = grpc.aio.server()
    credentials = Certificates(cert, ReplacedWhenRead(key)).credentials()
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    shown = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port), timeout=10)
    await server.stop(None)
    assert shown == renewed_cert.read_text()


async def test_two_servers_do_not_share_a_port_with_tls_either(folders: Folders, tls: dict[str, object]) -> None:
    async with serving(folders, **tls) as served:
        second = InferenceServer(settings(folders, **tls, grpc_port=served.server.grpc_port))
        with pytest.raises(Conflict, match="in use by another process; set INFERENCE_GRPC_PORT"):
            await second.start()
        await second.stop()


async def test_tls_files_that_cannot_be_used_are_named_with_their_variable(
    folders: Folders, authority: Authority, tls: dict[str, object], tmp_path: Path
) -> None:
    text, nowhere = tmp_path / "text.pem", tmp_path / "nowhere.pem"
    text.write_text("no certificate")
    _, other_key = authority.issue("other")
    for changes, says in [
        ({"tls_cert_file": nowhere}, r"INFERENCE_TLS_CERT_FILE: cannot read .*nowhere\.pem: No such file"),
        ({"tls_key_file": tmp_path}, "INFERENCE_TLS_KEY_FILE: cannot read .*directory"),
        ({"tls_cert_file": text}, r"INFERENCE_TLS_CERT_FILE: .*text\.pem is not a PEM file"),
        ({"tls_key_file": text}, r"INFERENCE_TLS_KEY_FILE: .*text\.pem is not a PEM file"),
        ({"tls_key_file": other_key}, r"INFERENCE_TLS_CERT_FILE .*other\.key: not a PEM certificate and its own key"),
        ({"tls_client_ca_file": text}, r"INFERENCE_TLS_CLIENT_CA_FILE: .*text\.pem is not a PEM file"),
        ({"tls_client_ca_file": other_key}, r"INFERENCE_TLS_CLIENT_CA_FILE: .*other\.key is not a PEM certificate"),
    ]:
        with pytest.raises(BadConfig, match=says):
            InferenceServer(settings(folders, **{**tls, **changes}))


# Tokens


@pytest.fixture
async def guarded(folders: Folders) -> AsyncIterator[Served]:
    async with serving(folders, predict_token="may-predict", admin_token="may-all") as served:
        yield served


async def test_each_scope_may_call_its_methods_and_no_other(guarded: Served) -> None:
    for method in (*PREDICTING, *EVERYTHING_ELSE):
        assert await code_of(guarded, method) is StatusCode.UNAUTHENTICATED, method
        assert await code_of(guarded, method, "Bearer wrong") is StatusCode.UNAUTHENTICATED, method
        assert await code_of(guarded, method, "Bearer may-all") not in REFUSED, method
    for method in PREDICTING:
        assert await code_of(guarded, method, "Bearer may-predict") not in REFUSED, method
    for method in EVERYTHING_ELSE:
        assert await code_of(guarded, method, "Bearer may-predict") is StatusCode.PERMISSION_DENIED, method


async def test_health_is_open_for_probes(guarded: Served) -> None:
    answer = await health_pb2_grpc.HealthStub(guarded.channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize(
    "values",
    [
        ["may-predict"],
        ["Basic may-predict"],
        ["Bearer"],
        ["Bearer "],
        ["Bearer may-predict2"],
        ["Bearer may-predic"],
        ["Bearer MAY-PREDICT"],
        ["Bearer may-predict", "Bearer may-predict"],
    ],
)
async def test_what_is_not_exactly_one_bearer_token_is_refused(guarded: Served, values: list[str]) -> None:
    assert await code_of(guarded, PREDICTING[0], *values) is StatusCode.UNAUTHENTICATED


async def test_the_scheme_is_read_without_case(guarded: Served) -> None:
    assert await code_of(guarded, PREDICTING[0], "bearer may-predict") is StatusCode.INVALID_ARGUMENT


async def test_refusals_have_one_text_each_and_are_counted(guarded: Served) -> None:
    texts = set()
    for token in ("", "wrong", "may-predict-not"):
        with pytest.raises(Unauthenticated) as caught:
            await label_by(guarded, Access(token=token))
        texts.add(str(caught.value))
    assert texts == {"a valid token is needed: send the metadata 'authorization: Bearer <token>'"}
    async with AsyncQuerentClient(guarded.address, access=Access(token="may-predict")) as client:
        with pytest.raises(Forbidden, match="needs an admin token"):
            await client.embed("any", [])
    for method, code, count in [
        ("PredictionService/Predict", "UNAUTHENTICATED", 3),
        ("PoolScoringService/Embed", "PERMISSION_DENIED", 1),
    ]:
        assert guarded.metric("inference_rpcs_total", method=f"querent.v1.{method}", code=code) == count


async def test_a_large_message_without_a_token_is_refused_unread(guarded: Served) -> None:
    with pytest.raises(Unauthenticated):
        async with AsyncQuerentClient(guarded.address) as client:
            await client.predict([bytes(30 * 1024 * 1024)])


async def test_an_unknown_method_makes_no_series(guarded: Served) -> None:
    assert await code_of(guarded, f"{QUERENT}PredictionService/Nothing") is StatusCode.UNIMPLEMENTED
    assert not any(
        "Nothing" in str(sample.labels)
        for metric in guarded.server.metrics.registry.collect()
        for sample in metric.samples
    )


async def test_with_one_scope_configured_the_other_is_closed_not_open(folders: Folders) -> None:
    async with serving(folders, predict_token="may-predict") as served:
        assert await code_of(served, EVERYTHING_ELSE[0]) is StatusCode.UNAUTHENTICATED
        assert await code_of(served, EVERYTHING_ELSE[0], "Bearer may-predict") is StatusCode.PERMISSION_DENIED
    async with serving(folders, admin_token="may-all") as served:
        assert await code_of(served, PREDICTING[0]) is StatusCode.UNAUTHENTICATED
        assert await code_of(served, PREDICTING[0], "Bearer may-all") is StatusCode.INVALID_ARGUMENT


async def test_tokens_of_a_file_rotate_without_a_restart(folders: Folders, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("old\n")
    async with serving(folders, predict_token_file=file) as served:
        client_file = tmp_path / "token"
        client_file.write_text("old\n")
        async with AsyncQuerentClient(served.address, access=Access(token_file=client_file)) as client:
            await client.list_models()
            file.write_text("old\nnew\n")
            await client.list_models()
            client_file.write_text("new\n")
            await client.list_models()
            file.write_text("new\n")
            await client.list_models()
        with pytest.raises(Unauthenticated):
            await label_by(served, Access(token="old"))


async def test_without_tokens_every_call_passes(folders: Folders) -> None:
    async with serving(folders) as served:
        for method in (*PREDICTING, *EVERYTHING_ELSE):
            assert await code_of(served, method) not in REFUSED, method


async def test_a_token_over_tls_is_both_encrypted_and_checked(
    folders: Folders, authority: Authority, tls: dict[str, object]
) -> None:
    async with serving(folders, **tls, predict_token="may-predict") as served:
        assert await label_by(served, Access(ca_file=authority.ca_file, token="may-predict"))
        with pytest.raises(Unauthenticated):
            await label_by(served, Access(ca_file=authority.ca_file))


async def test_a_token_file_that_cannot_be_used_is_named_with_its_variable(folders: Folders, tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match=r"INFERENCE_ADMIN_TOKEN_FILE: cannot read .*nowhere"):
        InferenceServer(settings(folders, admin_token_file=tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("changes", "events"),
    [
        ({"grpc_host": "0.0.0.0"}, ["unauthenticated_listener"]),
        ({"grpc_host": "0.0.0.0", "admin_token": "t"}, ["tokens_without_tls"]),
        ({"grpc_host": "127.0.0.1"}, []),
        ({"grpc_host": "[::1]"}, []),
        ({"grpc_host": "localhost", "admin_token": "t"}, []),
    ],
)
async def test_an_open_door_to_a_network_is_warned_of_once(
    folders: Folders, changes: dict[str, object], events: list[str]
) -> None:
    with structlog.testing.capture_logs() as logged:
        InferenceServer(settings(folders, **changes))
    assert [line["event"] for line in logged if line["log_level"] == "warning"] == events


async def test_encrypted_and_authenticated_listeners_are_not_warned_of(
    folders: Folders, authority: Authority, tls: dict[str, object]
) -> None:
    for changes in ({"admin_token": "t"}, {"tls_client_ca_file": authority.ca_file}):
        with structlog.testing.capture_logs() as logged:
            InferenceServer(settings(folders, grpc_host="0.0.0.0", **tls, **changes))
        assert [line["event"] for line in logged if line["log_level"] == "warning"] == []


# Connections


def connections_to(port: int) -> set[int]:
    """Ports of this process's own ends of its connections to `port`."""
    return {c.laddr.port for c in psutil.Process().net_connections("tcp") if c.raddr and c.raddr.port == port}


async def test_old_connections_are_replaced_and_no_call_is_lost(folders: Folders) -> None:
    async with (
        serving(folders, max_connection_age_seconds=0.2) as served,
        AsyncQuerentClient(served.address) as client,
        asyncio.timeout(20),
    ):
        watch = client.watch_model("tiny", timeout_s=20)
        assert (await anext(watch)).version == 1
        seen: set[int] = set()
        while len(seen) < 4:
            await client.list_models()
            seen |= connections_to(served.server.grpc_port)
        publish(folders.registry, TinyModel(version=2), promote=True)
        # The connection of this call has been told to go long ago; the call lives on it.
        while (await anext(watch)).version != 2:
            pass
        await watch.aclose()
