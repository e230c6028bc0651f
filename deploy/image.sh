#!/usr/bin/env bash
# Builds the Dockerfile where no registry of images can be reached, on a Debian that mmdebstrap makes, and tries it out.
#
#   apt-get install buildah podman runc mmdebstrap openssl
#   deploy/image.sh build serve      makes the image sensai-serve
#   deploy/image.sh build offline    makes the image sensai-serve:offline
#   deploy/image.sh try              the server answers a picture: not root, nothing writable, no capabilities; again with TLS
#   deploy/image.sh clean            removes the images and everything else that was made
#
# Variables of the environment:
#   STORE    where images are kept; they are seen by this script only (/var/tmp/sensai-image)
#   SUITE    Debian's release (bookworm), and MIRROR where it is fetched from
#   MOUNTS   files and folders of this machine that pip needs while images are built, such as the /etc/pip.conf of a mirror
#   DEBIAN   more arguments of mmdebstrap
set -euo pipefail

STORE=${STORE:-/var/tmp/sensai-image}
SUITE=${SUITE:-bookworm}
MIRROR=${MIRROR:-http://deb.debian.org/debian}
BASE=localhost/sensai-base
SOURCE=$(cd "$(dirname "$0")/.." && pwd)
IN_STORE=(--storage-driver vfs --root "$STORE/images" --runroot "$STORE/run")
PODMAN=(podman "${IN_STORE[@]}" --cgroup-manager cgroupfs --runtime runc)

fail() { echo "image.sh: $*" >&2; exit 1; }

base() { # an image of Debian with Python, where there is none yet
    buildah "${IN_STORE[@]}" inspect --type image "$BASE" >/dev/null 2>&1 && return
    mkdir -p "$STORE"
    # shellcheck disable=SC2086 - several arguments are meant
    mmdebstrap --variant=minbase --include=python3,python3-venv,ca-certificates ${DEBIAN:-} "$SUITE" "$STORE/base.tar" "$MIRROR"
    local empty
    empty=$(buildah "${IN_STORE[@]}" from scratch)
    buildah "${IN_STORE[@]}" add --quiet "$empty" "$STORE/base.tar" / >/dev/null
    buildah "${IN_STORE[@]}" commit --quiet --rm "$empty" "$BASE" >/dev/null
    rm "$STORE/base.tar"
}

build() { # build TARGET
    local target=$1 tag=localhost/sensai-serve mounts=()
    case $target in
        serve) ;;
        offline) tag=$tag:offline ;;
        *) fail "no target is called '$target', expected serve or offline" ;;
    esac
    for path in ${MOUNTS:-}; do mounts+=(--volume "$path:$path:ro"); done
    base
    # The format of Docker keeps the health check.
    buildah "${IN_STORE[@]}" build --isolation chroot --network host --format docker --layers=false \
        --build-arg BASE="$BASE" --target "$target" --tag "$tag" "${mounts[@]}" "$SOURCE"
    buildah "${IN_STORE[@]}" images
}

run() { # run NAME ARGUMENTS...: the server as Kubernetes' manifests confine it, ready, or the end of this script
    local name=$1
    shift
    "${PODMAN[@]}" run --detach --name "$name" --pull never --network none --no-healthcheck \
        --ulimit "nofile=$(ulimit -Sn):$(ulimit -Hn)" --ulimit nproc=4096:4096 \
        --read-only --read-only-tmpfs=false --cap-drop all --security-opt no-new-privileges \
        --volume "$STORE/secrets:/run/secrets:ro" localhost/sensai-serve "$@" >/dev/null
    local check
    mapfile -t check < <("${PODMAN[@]}" image inspect --format '{{range .HealthCheck.Test}}{{println .}}{{end}}' localhost/sensai-serve)
    for _ in $(seq 120); do # the image's own health check; it begins with the word CMD and ends with an empty line
        "${PODMAN[@]}" exec "$name" "${check[@]:1:${#check[@]}-2}" 2>/dev/null && return
        sleep 0.5
    done
    "${PODMAN[@]}" logs "$name" >&2
    fail "$name is not healthy"
}

stop() { # stop NAME: the server ends when it is told to
    local code
    "${PODMAN[@]}" stop --time 20 "$1" >/dev/null
    code=$("${PODMAN[@]}" wait "$1")
    "${PODMAN[@]}" rm --volumes "$1" >/dev/null
    [ "$code" = 0 ] || fail "$1 ended with code $code, expected 0"
}

answers_a_ship() { # answers_a_ship NAME URL ARGUMENTS...
    local name=$1
    shift
    "${PODMAN[@]}" exec --env SSL_CERT_FILE=/run/secrets/tls.crt "$name" sensai predict "$1" example:ship.png --json "${@:2}" |
        tee /dev/stderr | grep -q '"label": *"ship"' || fail "$name: the picture is of a ship"
}

try() {
    local secrets=$STORE/secrets
    mkdir -p "$secrets"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost \
        -addext subjectAltName=DNS:localhost -keyout "$secrets/tls.key" -out "$secrets/tls.crt" 2>/dev/null
    echo "a-token-for-everything predict observe control" >"$secrets/tokens"
    echo "a-token-for-everything" >"$secrets/token"
    chown -R 10001:10001 "$secrets"
    chmod 0400 "$secrets"/*
    trap '"${PODMAN[@]}" rm --force --all --volumes >/dev/null 2>&1 || true' EXIT

    run sensai-plain example:cifar10
    answers_a_ship sensai-plain http://localhost:8000
    "${PODMAN[@]}" exec --interactive sensai-plain python - <<'PYTHON'
import pathlib

status = dict(line.split(":\t") for line in pathlib.Path("/proc/1/status").read_text().splitlines() if ":\t" in line)
assert status["Uid"].split() == status["Gid"].split() == ["10001"] * 4, status
assert {int(status[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}, status
assert status["NoNewPrivs"] == "1", status
for folder in ("/", "/home/sensai", "/opt/sensai", "/tmp", "/var/tmp", "/run", "/run/secrets"):
    try:
        pathlib.Path(folder, "written").touch()
    except OSError:
        continue
    raise SystemExit(f"{folder} can be written")
print("not root, no capabilities, no new privileges, and nothing of the root file system can be written")
PYTHON
    stop sensai-plain

    run sensai-tls example:cifar10 --tls-cert /run/secrets/tls.crt --tls-key /run/secrets/tls.key --tokens /run/secrets/tokens
    answers_a_ship sensai-tls https://localhost:8000 --token-file /run/secrets/token
    stop sensai-tls
    echo "the same with TLS and tokens, and its health check holds"
}

clean() {
    "${PODMAN[@]}" rm --force --all --volumes >/dev/null 2>&1 || true
    buildah "${IN_STORE[@]}" rm --all >/dev/null 2>&1 || true
    buildah "${IN_STORE[@]}" rmi --all --force >/dev/null 2>&1 || true
    rm -rf "$STORE"
}

case ${1:-} in
    build) build "${2:-serve}" ;;
    try) try ;;
    clean) clean ;;
    *) sed -n '2,15s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
