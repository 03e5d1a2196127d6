#!/usr/bin/env bash
# Makes .venv-ffcv, in which bench/throughput.py runs FFCV as a peer:
#
#     bash bench/ffcv.sh                      # beside .venv, which `make test` makes
#     PYTHON=/other/bin/python bash bench/ffcv.sh
#
# FFCV 1.0.2 breaks with numpy >= 2.3 and is built from source, so it gets an environment of its own. That one holds
# numpy and FFCV; everything else (torch, numba, OpenCV, emnist_dali) it takes from the environment of $PYTHON, so that
# both measure with the same build of torch and 5 GB are not installed twice.
# The build needs Debian's libopencv-dev libturbojpeg0-dev pkg-config g++; run as root, this installs what is missing.
set -euo pipefail

cd "$(dirname "$0")/.."
main=${PYTHON:-.venv/bin/python}
packages=(libopencv-dev libturbojpeg0-dev pkg-config g++)
venv=.venv-ffcv

if ! "$main" -c 'import cv2, emnist_dali, numba, torch'; then
    echo "$main lacks what FFCV's environment takes from it; run «make test» first or name another with PYTHON=." >&2
    exit 1
fi

if ! { pkg-config --exists opencv4 libturbojpeg && command -v g++; } >/dev/null 2>&1; then
    if [ "$(id -u)" != 0 ]; then
        echo "FFCV's build needs Debian packages: sudo apt-get install ${packages[*]}" >&2
        exit 1
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends "${packages[@]}"
fi

rm -rf "$venv"
"$main" -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check setuptools wheel 'numpy<2.3' assertpy terminaltables
# FFCV names scikit-learn, pandas and webdataset among its dependencies; reading and writing a beton needs none of them.
"$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --no-build-isolation ffcv==1.0.2

# A .pth line that is a path only extends sys.path; addsitedir also processes the .pth files found there, among them
# that of an editable install. It comes after this environment's own packages, so its numpy wins.
site() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
echo "import site; site.addsitedir('$(site "$main")')" >"$(site "$venv/bin/python")/main.pth"

"$venv/bin/python" -c '
import ffcv.loader, numpy, torch, emnist_dali.pipelines.fused
print(f"FFCV is ready: numpy {numpy.__version__}, torch {torch.__version__}")'
