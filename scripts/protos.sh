#!/usr/bin/env bash
# Generate services/common/pb from protos/. The output is committed and never edited by hand.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

PATH="$(dirname "$python"):$PATH" "$python" -m grpc_tools.protoc -Iprotos \
    --python_out="$out" --grpc_python_out="$out" --mypy_out=quiet:"$out" --mypy_grpc_out=quiet:"$out" \
    protos/querent/v1/*.proto

# protoc writes imports for a top-level package `querent`; ours lives inside services.common.pb.
sed -i 's/^from querent\.v1 import/from services.common.pb import/; s/^import querent\.v1\.\([a-z_0-9]*\)_pb2/import services.common.pb.\1_pb2/; s/querent\.v1\.\([a-z_]*\)_pb2\./services.common.pb.\1_pb2./g' \
    "$out"/querent/v1/*_grpc.py "$out"/querent/v1/*.pyi
cp "$out"/querent/v1/*.py "$out"/querent/v1/*.pyi services/common/pb/

# The Open Inference Protocol's messages have the full names that other packages' stubs have (tritonclient's): in
# protobuf's default pool the second to come is an error, so ours live in a pool of their own.
PATH="$(dirname "$python"):$PATH" "$python" -m grpc_tools.protoc -Iprotos \
    --python_out="$out" --mypy_out=quiet:"$out" protos/open_inference/grpc_service.proto
sed 's/_descriptor_pool\.Default()/_descriptor_pool.DescriptorPool()/' "$out"/open_inference/grpc_service_pb2.py \
    >services/common/pb/open_inference_pb2.py
cp "$out"/open_inference/grpc_service_pb2.pyi services/common/pb/open_inference_pb2.pyi
