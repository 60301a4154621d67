#!/usr/bin/env bash
# The Triton kernels under other versions of Triton than the one that torch asks for: what each makes of them for every GPU
# (no spills, wide accesses, tickets in order), or what the arguments ask pytest for.
# usage: triton_check.sh PYTHON [PYTEST ARGUMENTS]   TRITONS="3.6.0 3.8.0 3.9.0" to choose; they go to build/triton-check.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1
shift
[ $# -gt 0 ] || set -- tests/gpu/test_reports.py -k "spills or accesses or tickets"
failed=0
for version in ${TRITONS:-3.6.0 3.8.0 3.9.0}; do
  place=build/triton-check/$version
  if [ ! -d "$place/triton" ]; then
    free=$(df -Pk . | awk 'NR == 2 {print int($4 / 1048576)}')
    if [ "$free" -lt 3 ]; then
      echo "triton-check: SKIPPED triton $version: needs 3 GiB of disk, $free GiB are free" >&2
      continue
    fi
    "$python" -m pip install -q --no-deps --target "$place" "triton==$version"
  fi
  PYTHONPATH=$place "$python" -c "import triton; print('triton', triton.__version__)"
  PYTHONPATH=$place "$python" -m pytest -q -p no:benchmark "$@" ||
    { echo "triton-check: FAILED under triton $version" >&2; failed=1; }
done
exit $failed
