#!/usr/bin/env bash
# Compares with PyTorch, transformers and TRL, in an environment of its own that has them beside JAX.
#
#     bash launch/parity.sh                  # tiny models
#     bash launch/parity.sh --everything     # TRL's own training and SmolLM2 too, as .ci/run does
#     bash launch/parity.sh [--dry-run] [pytest arguments]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

take_dry_run "$@"
set -- ${arguments[@]+"${arguments[@]}"} # bash before 4.4 takes an empty list for an unset one

venv="$(environment_folder .venv)-parity"
prepare_environment "$venv" parity
command=("$venv/bin/python" -m pytest -n auto tests/parity "$@")
if [[ "$DRY_RUN" == 1 ]]; then
    say "Running $(quoted "${command[@]}")"
    exit 0
fi
cd "$REPO"
export DPO_JAX_PARITY=1 # missing libraries are then an error, not a reason to skip
exec "${command[@]}"
