"""Our messages against Triton's, and the scan of a request's bytes against protobuf's parser."""

import subprocess
import sys
import time
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2, service_pb2

from services.common.errors import BadRequest
from services.common.pb import open_inference_pb2 as ours
from services.inference.oip_wire import parse

_THEIRS = (service_pb2.DESCRIPTOR, model_config_pb2.DESCRIPTOR)


# ---- the messages -------------------------------------------------------------------------------------


def fields(message: Any) -> dict[int, tuple[object, ...]]:
    return {
        field.number: (
            field.name,
            field.type,
            field.is_repeated,
            field.message_type.full_name if field.message_type else None,
        )
        for field in message.fields
    }


def messages(container: Any) -> list[Any]:
    """All messages of a file, the nested ones too."""
    found = []
    for message in container:
        found += [message, *messages(message.nested_types)]
    return found


def test_every_message_of_ours_has_tritons_names_numbers_and_types() -> None:
    theirs = {m.full_name: m for file in _THEIRS for m in messages(file.message_types_by_name.values())}
    mine = messages(ours.DESCRIPTOR.message_types_by_name.values())
    assert len(mine) > 40
    for message in mine:
        assert fields(message).items() <= fields(theirs[message.full_name]).items(), message.full_name


def test_every_method_of_ours_has_tritons_types() -> None:
    [mine] = ours.DESCRIPTOR.services_by_name.values()
    theirs = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert mine.full_name == theirs.full_name
    assert len(mine.methods) == 11
    for method in mine.methods:
        same = theirs.methods_by_name[method.name]
        assert (method.input_type.full_name, method.output_type.full_name, method.server_streaming) == (
            same.input_type.full_name,
            same.output_type.full_name,
            same.server_streaming,
        )


def test_data_types_have_tritons_numbers() -> None:
    assert dict(ours.DataType.items()).items() <= dict(model_config_pb2.DataType.items()).items()


@pytest.mark.slow
@pytest.mark.parametrize("ours_first", [True, False])
def test_ours_and_tritonclient_live_in_one_process_in_either_order(ours_first: bool) -> None:
    imports = ["from services.common.pb import open_inference_pb2 as ours", "import tritonclient.grpc as theirs"]
    program = "\n".join(imports if ours_first else imports[::-1]) + (
        "\nrequest = theirs.service_pb2.ModelInferRequest(model_name='a', raw_input_contents=[b'b'])"
        "\nmine = ours.ModelInferRequest.FromString(request.SerializeToString())"
        "\nprint(mine.model_name, mine.raw_input_contents[0].decode())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "a b\n"), done.stderr


# ---- the scan -----------------------------------------------------------------------------------------

parameters = st.builds(
    lambda kind: ours.InferParameter(**dict([kind])),
    st.sampled_from([("bool_param", True), ("int64_param", -1), ("uint64_param", 2**63), ("string_param", "é")]),
)
inputs = st.builds(
    lambda name, shape, values: ours.ModelInferRequest.InferInputTensor(
        name=name, datatype="UINT8", shape=shape, contents=ours.InferTensorContents(uint_contents=values)
    ),
    st.text(max_size=5),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3),
    st.lists(st.integers(0, 2**32 - 1), max_size=3),
)
requests = st.builds(
    lambda name, given, raw, named: ours.ModelInferRequest(
        model_name=name, id="i" * 200, inputs=given, raw_input_contents=raw, parameters=named
    ),
    st.text(max_size=5),
    st.lists(inputs, max_size=2),
    st.lists(st.binary(max_size=300), max_size=3),
    st.dictionaries(st.text(max_size=3), parameters, max_size=2),
)
# Unknown fields of every kind of encoding, groups among them, and field 7 as something else than bytes.
unknown = st.sampled_from(
    [
        b"",
        b"\x98\x06\x96\x01",
        b"\x9d\x06abcd",
        b"\x99\x06abcdefgh",
        b"\x9a\x06\x02xy",
        b"\x38\x05",
        b"\x9b\x06\x9c\x06",
    ]
)


def agrees(data: bytes) -> None:
    try:
        expected = ours.ModelInferRequest.FromString(data)
    except DecodeError:
        with pytest.raises(BadRequest, match="not a ModelInferRequest"):
            parse(data)
        return
    request = parse(data)
    assert [bytes(raw) for raw in request.raw] == list(expected.raw_input_contents)
    assert not request.message.raw_input_contents
    expected.ClearField("raw_input_contents")
    assert request.message == expected


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(requests, unknown), max_size=3))
def test_the_scan_and_protobuf_agree_on_messages_joined_in_any_way(parts: list[tuple[Any, bytes]]) -> None:
    agrees(b"".join(request.SerializeToString() + rest for request, rest in parts))


@settings(max_examples=300, deadline=None)
@given(requests, st.data())
def test_the_scan_and_protobuf_agree_on_damaged_messages(request_: Any, data: st.DataObject) -> None:
    whole = request_.SerializeToString()
    cut = data.draw(st.integers(0, len(whole)))
    place = data.draw(st.integers(0, max(len(whole) - 1, 0)))
    flipped = bytearray(whole)
    if whole:
        flipped[place] ^= data.draw(st.integers(1, 255))
    agrees(whole[:cut])
    agrees(bytes(flipped))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40))
def test_the_scan_and_protobuf_agree_on_any_bytes(data: bytes) -> None:
    agrees(data)


def test_the_tensor_is_a_view_of_the_requests_bytes() -> None:
    data = ours.ModelInferRequest(model_name="a", raw_input_contents=[bytes(100)]).SerializeToString()
    assert parse(data).raw[0].obj is data


def test_a_message_of_millions_of_fields_is_refused_after_a_thousand() -> None:
    for flood in (b"\x2a\x00" * 5_000_000, b"\x38\x05" * 5_000_000):  # inputs that are empty; unknown numbers
        started = time.process_time()
        with pytest.raises(BadRequest, match="more than 1000"):
            parse(flood)
        assert time.process_time() - started < 0.5


def test_a_message_of_groups_is_left_to_protobuf_only_while_it_is_small() -> None:
    group = b"\x9b\x06\x9c\x06"
    agrees(group)
    with pytest.raises(BadRequest, match="not a ModelInferRequest"):
        parse(group + b"\x2a\x00" * 600_000)
