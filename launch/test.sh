#!/usr/bin/env bash
# Runs the tests, in the same environment as local.sh; the parity tests (PyTorch) are launch/parity.sh.
#
#     bash launch/test.sh                  # the quick ones: something of every part
#     bash launch/test.sh --everything     # the slow ones too, as .ci/run does
#     bash launch/test.sh [pytest arguments]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

venv="$(environment_folder .venv)"
extra="$(find_accelerator)"
prepare_environment "$venv" "$extra"
cd "$REPO"
# A worker for each core; `-n 0` takes them away.
exec "$venv/bin/python" -m pytest -n auto "$@"
