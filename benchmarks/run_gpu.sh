#!/usr/bin/env bash
# Tests, checks and measures fastht on a GPU machine: first is it right, then how fast.
#
# With a GPU for four minutes, what is most wanted first:
#
#   FASTHT_SECONDS=240 benchmarks/run_gpu.sh OUT first
#
# With a GPU for half an hour, a command a line, each under ten minutes and complete in itself:
#
#   benchmarks/run_gpu.sh OUT compile tests     # kernels compiled for this chip; the kernels' tests
#   benchmarks/run_gpu.sh OUT more-tests        # the other tests that need a GPU
#   benchmarks/run_gpu.sh OUT launches memcheck # each kernel's time and bytes; compute-sanitizer
#   benchmarks/run_gpu.sh OUT tune              # tile sizes for one shape, into OUT/configs.json
#   benchmarks/run_gpu.sh OUT cuda              # the native CUDA kernels: bits, tools, times
#   benchmarks/run_gpu.sh OUT losses            # the contrastive losses: right, how fast, how large
#   benchmarks/run_gpu.sh OUT adapter machine   # against plain PyTorch and the machine's limits
#
# Usage: benchmarks/run_gpu.sh [--dry] OUT [PHASE...]
#
# Phases, in this order unless some are named, which then run in the order of their names: compile
# tests more-tests launches memcheck tune cuda losses benchmarks sanitizer. `benchmarks` stands for
# one phase for each suite, benchmarks/test_*.py, which can be named too; `sanitizer` is all three
# tools on all small cases. `first` stands for tests more-tests losses-right cuda-gate adapter
# memcheck: all tests that need a GPU, the losses by the rule of correctness, float32 before the
# others, the CUDA kernels' bits and times, the adapter beside eager and compiled PyTorch, and
# compute-sanitizer. A phase that fails, hangs or lacks a tool stops no other; each has a time
# limit, a share of what is left, so that time that one does not need goes to those after it.
# FASTHT_SECONDS (560) bounds the whole call; suites measure the first of their cases first.
#
# OUT gets environment.json, a log of each phase, written as it goes on, compiled.jsonl,
# launches.json, configs.json, benchmarks.json with tables and pictures in report/, and after every
# phase summary.{md,json} of all phases so far, those of earlier calls too. The exit status is not 0
# if a phase of this call failed.
#
# Runs from the checkout; nothing has to be installed but torch, triton, safetensors, pytest and
# pytest-benchmark, and nothing is fetched. What Triton compiles is kept in TRITON_CACHE_DIR
# (~/.triton/cache) for the next call. The interpreter is $PYTHON (python3). --dry takes the same
# path on a CPU, tiny and in Triton's interpreter: it shows that the script works and measures
# nothing.
set -uo pipefail

fail() { echo "run_gpu.sh: $1" >&2 && exit 2; }

FASTHT_DRY=0
[ "${1:-}" = --dry ] && FASTHT_DRY=1 && shift
[ $# -ge 1 ] || fail "usage: benchmarks/run_gpu.sh [--dry] OUT [PHASE...]"
out=$(mkdir -p "$1" && cd "$1" && pwd) || fail "cannot make the folder $1"
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

declare -A share=([compile]=60 [tests]=110 [more-tests]=90 [launches]=60 [memcheck]=50 [tune]=60 [cuda]=60 [losses]=80 [sanitizer]=90)
share+=([losses-right]=30 [cuda-gate]=30) # parts of losses and cuda
declare -A suite_share=([machine]=40 [adapter]=120 [memory]=40 [training]=60) # others: 20
suites=
for name in machine adapter memory training $(basename -s .py benchmarks/test_*.py | cut -c 6-); do
    [ -f "benchmarks/test_$name.py" ] || continue
    [ -z "${share[$name]:-}" ] || continue # seen
    share[$name]=${suite_share[$name]:-20}
    suites+="${suites:+ }$name"
done
[ $FASTHT_DRY = 1 ] && suites="machine adapter" # two show the way
phases="compile tests more-tests launches memcheck tune cuda losses $suites sanitizer"
selected=${*:-compile tests more-tests launches memcheck tune cuda losses benchmarks sanitizer}
selected=${selected/first/tests more-tests losses-right cuda-gate adapter memcheck}
selected=${selected/benchmarks/$suites}
for name in $selected; do
    [ -n "${share[$name]:-}" ] ||
        fail "no phase '$name'; there are: first ${phases/losses/losses benchmarks losses-right cuda-gate}"
done

PYTHON=${PYTHON:-python3}
PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export FASTHT_DRY PYTHON PYTHONPATH PYTHONUNBUFFERED=1 out
[ $FASTHT_DRY = 1 ] && export TRITON_INTERPRET=1 OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES=
if [ $FASTHT_DRY = 1 ] && ! why=$("$PYTHON" -m benchmarks.gpu.interpreter); then
    echo "-- nothing is tried: $why"
    exit 0
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export scratch
mkdir -p "$out/suites"
end=$((SECONDS + ${FASTHT_SECONDS:-560}))
rm -f "$out"/summary.{md,json}
timeout 120 "$PYTHON" -m benchmarks.gpu.environment "$out/environment.json" || exit 2

run_compile() {
    local options=(--arch "$("$PYTHON" -m benchmarks.gpu.environment --chip)" --dim 48 192 768)
    options+=(--of adapter)  # the losses compile in the phase that runs them
    [ "$FASTHT_DRY" = 1 ] && options=(--arch sm_90 --channels 16 --numbers bf16 --dim 48 --kernel fold --of adapter)
    rm -f "$out/compiled.jsonl"
    # In as many processes as there are cores, without the GPU; what they compile stays in Triton's
    # cache. The table is what is wanted too: a spill costs time, but here it fails nothing.
    env -u TRITON_INTERPRET "$PYTHON" -m benchmarks.compile_table "${options[@]}" \
        --json "$out/compiled.jsonl"
    [ -s "$out/compiled.jsonl" ]
}

# The files with tests that need a GPU, of which engines.py makes some: others need packages that a
# GPU machine may lack.
gpu_tests() { grep -rlE 'mark\.gpu|^from (engines|loss_cases)' tests --include='test_*.py'; }

run_tests() { run_pytest tests/test_gpu.py tests/test_ops.py; }

run_more_tests() {
    local files
    mapfile -t files < <(gpu_tests | grep -vxE 'tests/test_(gpu|ops)\.py')
    run_pytest "${files[@]}"
}

run_pytest() {
    # A line a test, as it ends, so that the log of a run that is cut short says what it has seen.
    local options=(-m gpu -v -rfE --tb=short -p no:cacheprovider --durations=10)
    "$PYTHON" -c 'import xdist' 2>/dev/null && options+=(-n 8)
    [ "$FASTHT_DRY" = 1 ] && options=(-m gpu -q -p no:cacheprovider --collect-only)
    "$PYTHON" -m pytest "${options[@]}" "$@"
    local status=$?
    [ "$FASTHT_DRY" = 1 ] && [ $status = 5 ] && return 0 # without a GPU none is to be collected
    return $status
}

run_memcheck() {
    local groups=("bfloat16 channel")
    run_tools "$1" memcheck
}

run_sanitizer() {
    local groups=("bfloat16 channel" "bfloat16 full" "float32 channel" "float32 full")
    [ "$FASTHT_DRY" = 1 ] && groups=("bfloat16 full" "float32 channel")
    run_tools "$1" memcheck racecheck initcheck
}

# run_tools SECONDS TOOL...: the tools on the small calls of "${groups[@]}", all at once.
run_tools() {
    local seconds=$1 sanitizer tool pid status cases failed=0 pids=()
    shift
    echo "== without a tool"
    # Four processes compile what the tools then find in Triton's cache.
    for cases in "${groups[@]}"; do
        "$PYTHON" -m benchmarks.gpu.small_calls "$cases" >"$scratch/plain $cases" 2>&1 &
        pids+=($!)
        [ "$FASTHT_DRY" = 1 ] && wait "${pids[-1]}" # one process at a time
    done
    for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
    cat "$scratch"/plain*
    [ "$FASTHT_DRY" = 1 ] && echo "dry run: compute-sanitizer is not run" && return $failed
    sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer) ||
        { echo "compute-sanitizer is not installed: nothing was checked by it" && return 1; }
    local left=$((seconds - SECONDS - 3))
    [ $left -gt 0 ] || { echo "no time left for the tools" && return 1; }
    pids=()
    [ ${#groups[@]} = 1 ] && cases=${groups[0]} || cases=
    for tool in "$@"; do
        # Without PyTorch's cache every tensor has an allocation and bounds of its own.
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout -k 2 "$left" "$sanitizer" --tool "$tool" \
            --error-exitcode 9 --print-limit 20 "$PYTHON" -m benchmarks.gpu.small_calls "$cases" \
            >"$scratch/$tool" 2>&1 &
        pids+=($!)
    done
    for tool in "$@"; do
        wait "${pids[0]}"
        status=$?
        pids=("${pids[@]:1}")
        echo "== $tool" && cat "$scratch/$tool" && echo "== $tool: exit status $status"
        [ $status = 0 ] || failed=1
    done
    return $failed
}

# run_suite NAME SECONDS: measures a suite in a process of its own, so that one that hangs or kills
# its CUDA context costs no other's results. The last benchmarks begin a minute before the end, or
# when a quarter of the time is left.
run_suite() {
    local begin=$(($2 > 240 ? $2 - 60 : $2 * 3 / 4))
    local options=(--benchmark-only --benchmark-json "$out/suites/$1.json" --benchmark-quiet)
    echo "== $1"
    "$PYTHON" -c 'import pytest_benchmark' 2>/dev/null ||
        { echo "pytest-benchmark is not installed: nothing was measured" && return 1; }
    [ "$FASTHT_DRY" = 1 ] && options+=(--collect-only)
    "$PYTHON" -m pytest "benchmarks/test_$1.py" "${options[@]}" -q -rfEs -p no:cacheprovider \
        --seconds $begin
    local status=$?
    [ $status = 5 ] && return 0 # the suite needs a package that is not here, and says so
    return $status
}

run_launches() {
    "$PYTHON" -m benchmarks.gpu.launches --out "$out/launches.json" --seconds "$1"
}

run_tune() {
    local options=(--dim 768 --channels 64 --numbers 16 --batch 256 --grid 14 --budget-s "$1")
    [ "$FASTHT_DRY" = 1 ] && options=(--dry --kernels down)
    rm -f "$out/configs.json"
    "$PYTHON" -m benchmarks.tune "${options[@]}" --write --table "$out/configs.json"
}

run_cuda() { "$PYTHON" -m benchmarks.gpu.cuda_check --out "$out/cuda.json" --seconds "$1"; }

run_losses() { "$PYTHON" -m benchmarks.gpu.losses_check --out "$out/losses.json" --seconds "$1"; }
run_losses_right() {
    "$PYTHON" -m benchmarks.gpu.losses_check --out "$out/losses-right.json" --seconds "$1" --right
}

# The dry run's own part, the bits, is what the phase `cuda` tries already.
run_cuda_gate() {
    local options=(--out "$out/cuda-gate.json" --seconds "$1")
    [ "$FASTHT_DRY" = 1 ] || options+=(--parts bits times)
    "$PYTHON" -m benchmarks.gpu.cuda_check "${options[@]}"
}
export -f run_losses_right run_cuda_gate run_compile run_tests run_more_tests gpu_tests run_pytest run_memcheck run_sanitizer \
    run_tools run_suite run_launches run_tune run_cuda run_losses

# phase NAME LOG SIGNAL FUNCTION...: runs FUNCTION, whose last argument its seconds become, into LOG;
# at its limit it gets SIGNAL. pytest takes INT as a wish to end and still writes what it has.
phase() {
    local name=$1 log=$out/$2.log signal=$3 weights=0 before=$SECONDS
    # What an earlier call said of this phase counts no more.
    [ ! -f "$out/phases" ] || sed -i "/^$name /d" "$out/phases"
    [ "$log" = "$out/benchmarks.log" ] || rm -f "$log"
    for other in $name $later; do weights=$((weights + share[$other])); done
    local limit=$(((end - SECONDS) * share[$name] / weights))
    if [ $limit -lt 10 ]; then
        echo "-- $name: no time left"
        echo "$name 124 0 $limit" >>"$out/phases" && failed=1
        return
    fi
    echo "-- $name (at most $limit s)"
    timeout -s "$signal" -k 8 "$limit" bash -c "${*:4} $((limit - 8))" >>"$log" 2>&1
    local status=$?
    echo "$name $status $((SECONDS - before)) $limit" >>"$out/phases"
    timeout 60 "$PYTHON" -m benchmarks.gpu.report "$out" >/dev/null
    [ $status = 0 ] && return
    failed=1
    echo "   failed with status $status; the end of $log:"
    tail -n 5 "$log" | cut -c 1-300
}

failed=0
later="$selected "
for name in $selected; do
    later=${later#"$name "}
    case $name in
        tests | more-tests) phase "$name" "$name" INT "run_${name//-/_}" ;;
        *) case " $suites " in
            *" $name "*) phase "$name" benchmarks INT run_suite "$name" ;;
            *) phase "$name" "$name" TERM "run_${name//-/_}" ;;
        esac ;;
    esac
done
cat "$out/summary.md"
exit $failed
