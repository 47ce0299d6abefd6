#!/usr/bin/env bash
# Tests, checks and measures fastht on a GPU machine, in under nine minutes.
#
#   benchmarks/run_gpu.sh [--dry] OUT [PHASE...]
#
# Phases: tests sanitizer benchmarks launches; all of them unless some are named. A phase that fails,
# hangs or lacks a tool stops no other; each has a time limit, a share of what is left, so that time
# that one does not need goes to those after it. `benchmarks` stands for one phase for each suite,
# benchmarks/test_*.py, which can be named too (`adapter memory`). In nine minutes they measure the
# first of their cases; with fewer phases or a longer FASTHT_SECONDS more of them.
#
# OUT gets environment.json, {tests,sanitizer,benchmarks,launches}.log, {benchmarks,launches}.json,
# the benchmarks' tables and pictures in report/, and summary.{md,json}, which is printed too. The
# exit status is not 0 if a phase failed. Runs from the checkout, uninstalled. The interpreter is
# $PYTHON (python3); FASTHT_SECONDS (470) bounds the whole. --dry takes the same path on a CPU, tiny
# and in Triton's interpreter: it shows that the script works and measures nothing.
set -uo pipefail

fail() { echo "run_gpu.sh: $1" >&2 && exit 2; }

FASTHT_DRY=0
[ "${1:-}" = --dry ] && FASTHT_DRY=1 && shift
[ $# -ge 1 ] || fail "usage: benchmarks/run_gpu.sh [--dry] OUT [PHASE...]"
out=$(mkdir -p "$1" && cd "$1" && pwd) || fail "cannot make the folder $1"
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

declare -A share=([tests]=110 [sanitizer]=90 [launches]=60)
declare -A suite_share=([machine]=40 [adapter]=120 [memory]=40 [training]=60) # others: 20
suites=
for name in machine adapter memory training $(basename -s .py benchmarks/test_*.py | cut -c 6-); do
    [ -f "benchmarks/test_$name.py" ] || continue
    [ -z "${share[$name]:-}" ] || continue # seen
    share[$name]=${suite_share[$name]:-20}
    suites+="${suites:+ }$name"
done
[ $FASTHT_DRY = 1 ] && suites="machine adapter" # two show the way
phases="tests sanitizer $suites launches"
selected=${*:-tests sanitizer benchmarks launches}
selected=${selected/benchmarks/$suites}
for name in $selected; do
    [ -n "${share[$name]:-}" ] || fail "no phase '$name'; there are: tests sanitizer benchmarks launches $suites"
done

PYTHON=${PYTHON:-python3}
PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export FASTHT_DRY PYTHON PYTHONPATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 out
[ $FASTHT_DRY = 1 ] && export TRITON_INTERPRET=1 OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES=
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export scratch
mkdir "$scratch/suites"
end=$((SECONDS + ${FASTHT_SECONDS:-470}))
rm -f "$out"/{environment,benchmarks,launches,summary}.json "$out/summary.md" \
    "$out"/{tests,sanitizer,benchmarks,launches}.log
timeout 120 "$PYTHON" -m benchmarks.gpu.environment "$out/environment.json" || exit 2

run_tests() {
    local files options=(-m gpu -q -p no:cacheprovider --durations=10)
    # Only the files with such tests, of which engines.py makes some: others need packages that a
    # GPU machine may lack.
    mapfile -t files < <(grep -rlE 'mark\.gpu|^from engines' tests --include='test_*.py')
    "$PYTHON" -c 'import xdist' 2>/dev/null && options+=(-n 8)
    [ "$FASTHT_DRY" = 1 ] && options=(-m gpu -q -p no:cacheprovider --collect-only)
    "$PYTHON" -m pytest "${options[@]}" "${files[@]}"
    local status=$?
    [ "$FASTHT_DRY" = 1 ] && [ $status = 5 ] && return 0 # without a GPU none is to be collected
    return $status
}

run_sanitizer() {
    local seconds=$1 sanitizer tool pid status failed=0 pids=()
    local cases groups=("bfloat16 channel" "bfloat16 full" "float32 channel" "float32 full")
    [ "$FASTHT_DRY" = 1 ] && groups=("bfloat16 full" "float32 channel")
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
    for tool in memcheck racecheck initcheck; do
        # Without PyTorch's cache every tensor has an allocation and bounds of its own.
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout -k 2 "$left" "$sanitizer" --tool "$tool" \
            --error-exitcode 9 --print-limit 20 "$PYTHON" -m benchmarks.gpu.small_calls \
            >"$scratch/$tool" 2>&1 &
        pids+=($!)
    done
    for tool in memcheck racecheck initcheck; do
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
    local options=(--benchmark-only --benchmark-json "$scratch/suites/$1.json" --benchmark-quiet)
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
export -f run_tests run_sanitizer run_suite run_launches

# phase NAME LOG SIGNAL FUNCTION...: runs FUNCTION, whose last argument its seconds become, into LOG;
# at its limit it gets SIGNAL. pytest takes INT as a wish to end and still writes what it has.
phase() {
    local name=$1 log=$out/$2.log signal=$3 weights=0 before=$SECONDS later=" $phases "
    case " $selected " in *" $name "*) ;; *) return ;; esac
    for other in $name ${later#*" $name "}; do
        case " $selected " in *" $other "*) weights=$((weights + share[$other])) ;; esac
    done
    local limit=$(((end - SECONDS) * share[$name] / weights))
    if [ $limit -lt 10 ]; then
        echo "-- $name: no time left"
        echo "$name 124 0 $limit" >>"$scratch/phases"
        return
    fi
    echo "-- $name (at most $limit s)"
    timeout -s "$signal" -k 8 "$limit" bash -c "${*:4} $((limit - 8))" >>"$log" 2>&1
    local status=$?
    echo "$name $status $((SECONDS - before)) $limit" >>"$scratch/phases"
    [ $status = 0 ] && return
    echo "   failed with status $status; the end of $log:"
    tail -n 5 "$log" | cut -c 1-300
}

phase tests tests INT run_tests
phase sanitizer sanitizer TERM run_sanitizer
for name in $suites; do phase "$name" benchmarks INT run_suite "$name"; done
phase launches launches TERM run_launches
timeout 60 "$PYTHON" -m benchmarks.gpu.report "$out" "$scratch"
