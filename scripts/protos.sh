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
