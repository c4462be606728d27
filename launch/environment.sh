# shellcheck shell=bash
# Sourced by the other scripts: finds Python, makes the virtual environment, installs what is missing.
#
# prepare_environment FOLDER EXTRA    makes or completes the environment; EXTRA is an extra of pyproject.toml, or nothing
# find_accelerator                    prints the extra that this machine's accelerator needs, or nothing
# take_dry_run ARGUMENT ...           sets DRY_RUN to 1 if --dry-run is among them, and `arguments` to the others
# With DRY_RUN=1 prepare_environment says what it would do and does nothing.

REPO="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
DRY_RUN="${DRY_RUN:-0}"

say() { printf '%s\n' "$*" >&2; }

fail() {
    say "$*"
    exit 2
}

# Wherever it stands: behind CONFIG too nobody who wrote it is to install, or to pay for a slice.
take_dry_run() {
    local argument
    arguments=()
    for argument in "$@"; do
        if [[ "$argument" == --dry-run ]]; then DRY_RUN=1; else arguments+=("$argument"); fi
    done
}

# The words as one line that a shell reads back.
quoted() {
    local word line=""
    for word in "$@"; do
        [[ "$word" =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word="'${word//\'/\'\\\'\'}'"
        line+="$word "
    done
    printf '%s\n' "${line% }"
}

# Exit code 0 for Python 3.11 or later that can make virtual environments, 1 for an older one, 3 without ensurepip.
check_python() {
    "$1" - 2>/dev/null <<'PYTHON'
import importlib.util, sys
if sys.version_info < (3, 11):
    sys.exit(1)
sys.exit(0 if importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip") else 3)
PYTHON
}

python_version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

find_python() {
    local candidate code candidates=(python3.11 python3.12 python3.13 python3.14 python3)
    [[ -z "${PYTHON:-}" ]] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        code=0
        check_python "$candidate" || code=$?
        [[ $code != 0 ]] || { printf '%s\n' "$candidate" && return; }
        [[ $code != 3 ]] || fail "$candidate cannot make virtual environments; install its venv package (python3-venv)."
    done
    [[ -z "${PYTHON:-}" ]] || fail "PYTHON=$PYTHON is not Python 3.11 or later."
    fail "Python 3.11 or later is needed, and none was found; install one, or name it: PYTHON=/path/to/python $0"
}

# The first release of the driver that runs CUDA 13 is 580, the first for CUDA 12 is 525.
find_accelerator() {
    local driver
    if [[ -n "${DPO_JAX_ACCELERATOR:-}" ]]; then
        case "$DPO_JAX_ACCELERATOR" in
            cpu) return ;;
            cuda12 | cuda13 | tpu) printf '%s\n' "$DPO_JAX_ACCELERATOR" && return ;;
            *) fail "DPO_JAX_ACCELERATOR=$DPO_JAX_ACCELERATOR is unknown. Allowed: cpu, cuda12, cuda13, tpu." ;;
        esac
    fi
    if driver="$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null)"; then
        driver="${driver%%.*}"
        [[ "$driver" =~ ^[0-9]+$ ]] || return 0
        if ((driver >= 580)); then
            echo cuda13
        elif ((driver >= 525)); then
            echo cuda12
        else
            say "The NVIDIA driver $driver is too old for JAX (525 or later); going on with the CPU."
        fi
    elif compgen -G '/dev/accel[0-9]*' >/dev/null || compgen -G '/dev/vfio/[0-9]*' >/dev/null; then
        # Other makers use these device files too; 0x1ae0 is Google.
        ! grep -qs 0x1ae0 /sys/bus/pci/devices/*/vendor || echo tpu
    fi
}

# Python 3.12 and later get jax 0.12, which 3.11 cannot have.
lock_of() { [[ "$1" == 3.11 ]] && echo "$REPO/launch/lock-py311.txt" || echo "$REPO/launch/lock-py312.txt"; }

# One digest of everything the environment is made of; the folder counts because scripts in it hold absolute paths.
environment_digest() {
    local python="$1" venv="$2" lock="$3" extra="$4"
    "$python" - "$venv $extra" "$lock" "$REPO/pyproject.toml" "$REPO/launch/quickstart.txt" <<'PYTHON'
import hashlib, pathlib, sys
parts = [sys.version.encode(), sys.argv[1].encode(), *(pathlib.Path(name).read_bytes() for name in sys.argv[2:])]
print(hashlib.sha256(b"\0".join(parts)).hexdigest())
PYTHON
}

install() {
    local python="$1" lock="$2" extra="$3" package=(--no-deps -e .)
    [[ -z "$extra" ]] || package=(-e ".[$extra]")
    cd "$REPO" &&
        pip_install "$python" --require-hashes -r "$lock" &&
        pip_install "$python" --require-hashes --no-deps -r launch/quickstart.txt &&
        pip_install "$python" "${package[@]}"
}

pip_install() { "$1" -m pip --disable-pip-version-check --no-input -qq install "${@:2}"; }

prepare_environment() {
    local venv="$1" extra="$2" python="$1/bin/python" base version lock digest
    if check_python "$python" && "$python" -c 'import pip' 2>/dev/null; then
        base="$python"
    else
        base="$(find_python)"
    fi
    version="$(python_version "$base")"
    if [[ -n "${PYTHON:-}" && "$(python_version "$PYTHON")" != "$version" ]]; then
        fail "$venv holds Python $version, but PYTHON=$PYTHON; delete that folder, or name another by DPO_JAX_VENV."
    fi
    lock="$(lock_of "$version")"
    digest="$(environment_digest "$base" "$venv" "$lock" "$extra")"
    if [[ "$base" == "$python" && "$(cat "$venv/dpo-jax-installed" 2>/dev/null)" == "$digest" ]]; then
        return 0
    fi

    say "Installing ${lock##*/}${extra:+ and the extra $extra} into $venv (Python $version; once, a few minutes) ..."
    [[ "$DRY_RUN" == 0 ]] || return 0
    rm -f "$venv/dpo-jax-installed"
    [[ "$base" == "$python" ]] || "$base" -m venv --clear "$venv"
    (install "$python" "$lock" "$extra") || fail "The installation failed, as said above; the same command tries again."
    printf '%s\n' "$digest" >"$venv/dpo-jax-installed"
}

# DPO_JAX_VENV names another folder for the environment, in the repository unless it is absolute.
environment_folder() {
    local folder="${DPO_JAX_VENV:-$1}"
    [[ "$folder" == /* ]] && echo "$folder" || echo "$REPO/$folder"
}
