"""A grpc.aio server with one empty method: what a call costs before anything of ours happens."""

import asyncio

import grpc
import uvloop

METHOD = "/bench.Echo/Call"
ANSWER_BYTES = 4000


async def serve() -> None:
    async def call(_data: bytes, _context: object) -> bytes:
        return bytes(ANSWER_BYTES)

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)])
    _, service, method = METHOD.split("/")
    handlers = {method: grpc.unary_unary_rpc_method_handler(call)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())
