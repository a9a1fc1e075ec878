#!/usr/bin/env bash
# The containers of docker-compose.yml: scripts/stack.sh up|up-gpu|demo|down
#   DATA=/folder          a folder of your own images, one folder a class; mounted read-only
#   CONFIG=campaign.yaml  what `demo` runs (default: examples/cifar10-demo.yaml)
#   TORCH_INDEX=...       an index of CPU builds of torch, for a small trainer image
set -euo pipefail
cd "$(dirname "$0")/.."
DATA=${DATA:-} CONFIG=${CONFIG:-examples/cifar10-demo.yaml}

fail() {
    echo "stack: $*" >&2
    exit 1
}

need_docker() {
    docker compose version >/dev/null 2>&1 || fail "docker with its compose plugin is needed (2.20 or newer);
  without Docker: make demo"
    docker info >/dev/null 2>&1 || fail "the Docker engine does not answer; is it running, and may you use it?"
}

mount_data() {
    [ -n "$DATA" ] || return 0
    [ -d "$DATA" ] || fail "DATA=$DATA is no folder; give one with a folder of images for each class"
    # In the containers everything runs as user 10001, who must be able to read them.
    [ -z "$(find -L "$DATA" -maxdepth 2 -type d ! -perm -o=rx -print -quit)" ] ||
        fail "DATA=$DATA has folders that other users may not read; try: chmod -R o+rX '$DATA'"
    QUERENT_DATA=$(cd "$DATA" && pwd) QUERENT_DATA_AT=/data/my-images QUERENT_DATA_MODE=ro
    export QUERENT_DATA QUERENT_DATA_AT QUERENT_DATA_MODE
}

compose() {
    docker compose "${files[@]}" "$@"
}

# `docker compose run` would start a stack with other mounts anew: what was mounted is given again.
command_line() {
    [ -z "$DATA" ] || printf 'QUERENT_DATA=%q QUERENT_DATA_AT=/data/my-images QUERENT_DATA_MODE=ro \\\n    ' "$QUERENT_DATA"
    printf 'docker compose'
    [ ${#files[@]} -eq 0 ] || printf ' %s' "${files[@]}"
    printf ' run --rm al-trainer %s\n' "$*"
}

# All that the engine has: it refuses a limit of more.
limit_cpus() {
    local cpus
    cpus=$(docker info --format '{{.NCPU}}')
    [ -z "$cpus" ] || export INFERENCE_CPUS="${INFERENCE_CPUS:-$cpus}" TRAINER_CPUS="${TRAINER_CPUS:-$cpus}"
}

up() {
    mount_data
    limit_cpus
    compose up --build --detach --wait --wait-timeout "${WAIT_SECONDS:-900}"
    cat <<END

  gRPC             127.0.0.1:${INFERENCE_GRPC_PORT:-8001}
  its metrics      http://127.0.0.1:${INFERENCE_METRICS_PORT:-8002}/metrics
  dashboards       http://127.0.0.1:${GRAFANA_PORT:-3000}   (to edit: admin, \$GRAFANA_PASSWORD, default querent)
  Prometheus       http://127.0.0.1:${PROMETHEUS_PORT:-9090}
  alerts           http://127.0.0.1:${ALERTMANAGER_PORT:-9093}

next, a campaign:
END
    local example=examples/cifar10-demo.yaml
    [ -z "$DATA" ] || example=examples/folder.yaml
    echo "  $(command_line run "$example" --follow)"
}

demo() {
    up
    [ -f "$CONFIG" ] || fail "CONFIG=$CONFIG is no file; the examples: $(echo examples/*.yaml)"
    local at=/opt/querent/campaign.yaml
    compose run --rm --volume "$(realpath "$CONFIG"):$at:ro" al-trainer run "$at" --follow ||
        fail "the campaign did not finish. Where CIFAR-10 cannot be downloaded: make demo-compose CONFIG=examples/digits-demo.yaml"
}

down() {
    # Stopped first and removed afterwards, so that the exit codes can be seen.
    compose --profile tools stop --timeout 10
    local bad
    bad=$(compose --profile tools ps --all --format '{{.Service}} {{.State}} {{.ExitCode}}' | awk '$2 == "exited" && $3 != 0')
    compose --profile tools down --timeout 10
    [ -z "$bad" ] || fail "not ended cleanly (service, state, exit code): $bad"
}

files=()
case ${1:-} in
    up) need_docker && up ;;
    up-gpu) files=(-f docker-compose.yml -f docker-compose.gpu.yml) && need_docker && up ;;
    demo) need_docker && demo ;;
    down) need_docker && down ;;
    *) fail "usage: scripts/stack.sh up|up-gpu|demo|down" ;;
esac
