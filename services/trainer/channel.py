"""The trainer's channel to inference."""

import grpc

from services.common.access import Access

_OPTIONS = [
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.max_receive_message_length", 64 * 2**20),
    # A node that vanishes without a word is noticed within a minute, not when the call times out.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
]


def open_channel(target: str, access: Access) -> grpc.Channel:
    """Raises BadConfig for files of `access` that cannot be read."""
    pem = access.pem()
    # gRPC follows https_proxy, and no proxy has a way to this machine's loopback address.
    here = "127.0.0.1" in target or "localhost" in target
    options = [*_OPTIONS, ("grpc.enable_http_proxy", 0)] if here else _OPTIONS
    if pem is None:
        return grpc.insecure_channel(target, options)
    return grpc.secure_channel(target, grpc.ssl_channel_credentials(pem.ca, pem.key, pem.cert), options)
