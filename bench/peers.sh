#!/usr/bin/env bash
# Makes the environments in which bench/throughput.py runs peers that have other requirements than this project:
#
#     bash bench/peers.sh                     # all, beside .venv, which `make test` makes
#     bash bench/peers.sh ffcv                # one
#     PYTHON=/other/bin/python bash bench/peers.sh
#
# Each holds only what its peers require: everything else (torch, numba, OpenCV, emnist_dali) it takes from the
# environment of $PYTHON, so that all measure with the same build of torch and 5 GB are not installed three times.
set -euo pipefail

cd "$(dirname "$0")/.."
main=${PYTHON:-.venv/bin/python}
if ! "$main" -c 'import cv2, emnist_dali, numba, torch'; then
    echo "$main lacks what the environments take from it; run «make test» first or name another with PYTHON=." >&2
    exit 1
fi

site() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

# Makes .venv-$1 with pip's arguments, and without the packages that are in the main environment at that version.
environment() {
    local venv=.venv-$1
    shift
    rm -rf "$venv"
    "$main" -m venv "$venv"
    # A .pth line that is a path only extends sys.path; addsitedir also processes the .pth files found there, among
    # them that of an editable install. It comes after this environment's own packages, so those win.
    echo "import site; site.addsitedir('$(site "$main")')" >"$(site "$venv/bin/python")/main.pth"
    "$venv/bin/pip" install --quiet --disable-pip-version-check "$@"
}

loaders() {
    environment loaders spdl-core grain litdata mosaicml-streaming datasets torchdata webdataset
}

tensorflow() {
    environment tensorflow tensorflow-cpu
}

# FFCV 1.0.2 breaks with numpy >= 2.3 and is built from source, which needs Debian's packages; run as root, this
# installs what is missing.
ffcv() {
    local packages=(libopencv-dev libturbojpeg0-dev pkg-config g++)
    if ! { pkg-config --exists opencv4 libturbojpeg && command -v g++; } >/dev/null 2>&1; then
        if [ "$(id -u)" != 0 ]; then
            echo "FFCV's build needs Debian packages: sudo apt-get install ${packages[*]}" >&2
            return 1
        fi
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends "${packages[@]}"
    fi
    environment ffcv setuptools wheel 'numpy<2.3' assertpy terminaltables
    # It names scikit-learn, pandas and webdataset among its dependencies; reading and writing a beton needs none.
    .venv-ffcv/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation ffcv==1.0.2
}

for name in ${*:-loaders tensorflow ffcv}; do
    case $name in
        loaders | tensorflow | ffcv) "$name" ;;
        *) echo "There is no environment $name; name loaders, tensorflow or ffcv." >&2 && exit 1 ;;
    esac
done
