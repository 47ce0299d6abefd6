#!/usr/bin/env bash
# Compiles the native code without Python, in a temporary folder, and runs csrc/tests/test_cpu.cpp.
#
#   csrc/tests/check.sh MODE
#
# MODE: plain; sanitize (AddressSanitizer, UndefinedBehaviorSanitizer); thread (ThreadSanitizer);
# valgrind, which knows no AVX-512 and so takes the paths below it. The interpreter, which needs the
# package ninja, is $PYTHON (python3).
set -euo pipefail

case "${1:-}" in
    plain | sanitize | thread) run=() ;;
    valgrind) run=(valgrind --quiet --leak-check=full --error-exitcode=1) ;;
    *) echo "usage: csrc/tests/check.sh plain|sanitize|thread|valgrind" >&2 && exit 2 ;;
esac

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"${PYTHON:-python3}" "$(dirname "${BASH_SOURCE[0]}")/../build.py" "$1" "$scratch"
"${run[@]}" "$scratch/test_cpu"
