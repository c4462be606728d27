#!/usr/bin/env bash
# Runs an experiment on this machine; the first time it makes .venv and installs everything.
#
#     bash launch/local.sh [--dry-run] CONFIG [--key.sub value ...]
#     bash launch/local.sh [--dry-run] --install                       # no more than that
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

take_dry_run "$@"
set -- ${arguments[@]+"${arguments[@]}"} # bash before 4.4 takes an empty list for an unset one
[[ "$*" == --install || ($# -gt 0 && "$1" != -*) ]] ||
    fail "Usage: bash launch/local.sh [--dry-run] (--install | CONFIG [--key.sub value ...])"
[[ "$*" == --install || -f "$1" ]] || fail "No such file: $1 (paths start at $PWD)"

venv="$(environment_folder .venv)"
extra="$(find_accelerator)"
prepare_environment "$venv" "$extra"
[[ "$*" != --install ]] || exit 0
say "Running $(quoted dpo-jax run "$@") on ${extra:-the CPU}"
[[ "$DRY_RUN" == 0 ]] || exit 0
exec "$venv/bin/dpo-jax" run "$@"
