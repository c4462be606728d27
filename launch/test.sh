#!/usr/bin/env bash
# Runs the tests, in the same environment as local.sh; the parity tests (PyTorch) are launch/parity.sh.
#
#     bash launch/test.sh                  # the quick ones: something of every part
#     bash launch/test.sh --everything     # the slow ones too, as .ci/run does
#     bash launch/test.sh [--dry-run] [pytest arguments]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

take_dry_run "$@"
set -- ${arguments[@]+"${arguments[@]}"} # bash before 4.4 takes an empty list for an unset one

venv="$(environment_folder .venv)"
extra="$(find_accelerator)"
prepare_environment "$venv" "$extra"
command=("$venv/bin/python" -m pytest -n auto "$@") # a worker for each core; `-n 0` takes them away
if [[ "$DRY_RUN" == 1 ]]; then
    say "Running $(quoted "${command[@]}")"
    exit 0
fi
cd "$REPO"
exec "${command[@]}"
