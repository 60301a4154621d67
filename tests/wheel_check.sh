#!/usr/bin/env bash
# One wheel under several torch versions: its CPU tests pass under each, in an environment of its own, and its CUDA library
# loads where torch has CUDA, without a GPU or a driver.
# usage: wheel_check.sh DIST   with the wheel in DIST; TORCHES="2.13.0 2.14.1 2.11.0" to choose; environments go to build/wheel-check.
set -euo pipefail
cd "$(dirname "$0")/.."
wheel=$(ls "$1"/torch_fastmtl-*-py3-none-*.whl)
[ "$(echo "$wheel" | wc -l)" = 1 ] || { echo "wheel-check: expected one wheel in $1, found: $wheel" >&2; exit 1; }
failed=0
for version in ${TORCHES:-2.13.0 2.14.1 2.11.0}; do
  need=$([ "$version" = 2.13.0 ] && echo 3 || echo 16)  # GiB while installing; other versions are CUDA builds
  free=$(df -Pk . | awk 'NR == 2 {print int($4 / 1048576)}')
  if [ "$free" -lt "$need" ]; then
    echo "wheel-check: SKIPPED torch $version: needs $need GiB of disk, $free GiB are free" >&2
    continue
  fi
  env=build/wheel-check/$version
  [ -x "$env/bin/python" ] || "${PYTHON:-python3}" -m venv "$env"
  "$env/bin/python" -m pip install -q --upgrade "torch==$version" setuptools numpy pytest==9.2.0 \
    hypothesis==6.170.15 scipy==1.17.1 clarabel==0.11.1
  "$env/bin/python" -m pip install -q --no-deps --force-reinstall "$wheel"
  # The tests (and the benchmarks, whose measure of memory they use) run from a folder without the sources, so that the
  # installed wheel is what they import.
  place=$(mktemp -d)
  cp -r tests benchmarks pyproject.toml "$place"
  (
    python=$PWD/$env/bin/python
    cd "$place"
    "$python" -c "import fastmtl, torch; print(fastmtl.__file__, torch.__version__, torch.version.cuda)"
    "$python" - < "$place/tests/cuda/check_library.py"
    "$python" -m fastmtl
    FASTMTL_BACKEND='' "$python" -m pytest -q tests/ops tests/sources tests/balancers tests/training tests/kernels/test_cpp.py
  ) || { echo "wheel-check: FAILED under torch $version" >&2; failed=1; }
  rm -rf "$place"
done
exit $failed
