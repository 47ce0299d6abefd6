#!/usr/bin/env bash
# Compiles the native code without Python, in a temporary folder, and runs its tests: those of the
# CPU kernels (csrc/tests/test_cpu.cpp), or the CUDA kernels in the simulator (test_cuda.cpp).
#
#   csrc/tests/check.sh MODE
#
# MODE: plain; sanitize (AddressSanitizer, UndefinedBehaviorSanitizer); thread (ThreadSanitizer);
# valgrind, which knows no AVX-512 and so takes the paths below it; simulate, simulate-sanitize and
# simulate-race (the simulator's own race detector). The interpreter, which needs the package ninja,
# is $PYTHON (python3).
set -euo pipefail

program=(test_cpu)
case "${1:-}" in
    plain | sanitize | thread) run=() ;;
    simulate) program=(test_cuda) run=() ;;
    simulate-sanitize | simulate-race) program=(test_cuda quick) run=() ;;
    valgrind) run=(valgrind --quiet --leak-check=full --error-exitcode=1) ;;
    *)
        echo "usage: csrc/tests/check.sh plain|sanitize|thread|valgrind|simulate[-sanitize|-race]" >&2
        exit 2
        ;;
esac

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"${PYTHON:-python3}" "$(dirname "${BASH_SOURCE[0]}")/../build.py" "$1" "$scratch"
"${run[@]}" "$scratch/${program[0]}" "${program[@]:1}"
