#!/usr/bin/env bash
# Fetches Fashion-MNIST, 31 MB, from the Debian package dataset-fashion-mnist, without root, and checks it.
#
#     bash launch/fashion_mnist.sh [--dry-run] [FOLDER]      # .data/fashion-mnist, where {package: fashion-mnist} looks
#
# DATASETS names the folder that an installed package put its files into.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

PACKAGE=dataset-fashion-mnist
DATASETS="${DATASETS:-/usr/share/datasets}"
read -r -d '' DIGESTS <<'LIST' || true
b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7  train-images-idx3-ubyte.gz
0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056  train-labels-idx1-ubyte.gz
cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa  t10k-images-idx3-ubyte.gz
8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05  t10k-labels-idx1-ubyte.gz
LIST
INSTEAD="Elsewhere put its four files there yourself, or use scikit-learn's digits: {package: digits}."

take_dry_run "$@"
set -- ${arguments[@]+"${arguments[@]}"} # bash before 4.4 takes an empty list for an unset one
[[ $# -le 1 && "${1:-}" != -* ]] || fail "Usage: bash launch/fashion_mnist.sh [--dry-run] [FOLDER]"
folder="${1:-$REPO/.data/fashion-mnist}"

# Whether a folder holds the four files, as they are known.
is_whole() { [[ -d "$1" ]] && (cd "$1" && sha256sum --check --status <<<"$DIGESTS" 2>/dev/null); }

if is_whole "$folder"; then
    say "Fashion-MNIST is in $folder."
    exit 0
fi
installed="$DATASETS/fashion-mnist"
if is_whole "$installed"; then
    say "Copying $installed to $folder"
elif command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null; then
    say "Downloading the Debian package $PACKAGE to $folder"
else
    fail "Fashion-MNIST comes as the Debian package $PACKAGE, and apt-get or dpkg-deb is missing. $INSTEAD"
fi
[[ "$DRY_RUN" == 0 ]] || exit 0

if ! is_whole "$installed"; then
    temporary="$(mktemp -d)"
    trap 'rm -rf "$temporary"' EXIT
    (cd "$temporary" && apt-get -qq download "$PACKAGE" && dpkg-deb -x "$PACKAGE"_*.deb .) >&2 ||
        fail "The package $PACKAGE could not be downloaded (apt-get update may help). $INSTEAD"
    installed="$temporary/usr/share/datasets/fashion-mnist"
    is_whole "$installed" || fail "The package $PACKAGE holds other files than those known; nothing was written. $INSTEAD"
fi
mkdir -p "$folder"
while read -r _ name; do
    cp "$installed/$name" "$folder/"
done <<<"$DIGESTS"
is_whole "$folder" || fail "The files in $folder are not those that were copied there; is the disk full?"
say "Fashion-MNIST is in $folder."
