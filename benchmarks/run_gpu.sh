#!/usr/bin/env bash
# Tests, checks and measures fastht on a GPU machine, in under nine minutes.
#
#   benchmarks/run_gpu.sh [--dry] OUT [PHASE...]
#
# Phases: environment tests sanitizer kernels training; all of them unless some are named. A phase
# that fails, or lacks a tool, stops no other; each has a time limit, a share of what is left, so
# that time that one does not need goes to those after it. The summary comes last, on the screen and
# in OUT; the exit status is not 0 if a phase failed. OUT holds at most eight files:
#   environment.json tests.log sanitizer.log kernels.json training.json run.log summary.md
#   summary.json
# Runs from the checkout, uninstalled. The interpreter is $PYTHON (python3); FASTHT_SECONDS (500)
# bounds the whole. --dry runs every phase on a CPU, tiny and in Triton's interpreter: it shows that
# the script works and measures nothing.
set -uo pipefail

all="environment tests sanitizer kernels training"
declare -A share=([environment]=30 [tests]=110 [sanitizer]=120 [kernels]=130 [training]=135)

fail() { echo "run_gpu.sh: $1" >&2 && exit 2; }

FASTHT_DRY=0
[ "${1:-}" = --dry ] && FASTHT_DRY=1 && shift
[ $# -ge 1 ] || fail "usage: benchmarks/run_gpu.sh [--dry] OUT [PHASE...]"
mkdir -p "$1" && out=$(cd "$1" && pwd) || fail "cannot make the folder $1"
shift
selected=${*:-$all}
for name in $selected; do
    [ -n "${share[$name]:-}" ] || fail "there is no phase '$name'; choose from: $all"
done

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
PYTHON=${PYTHON:-python3}
PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export FASTHT_DRY PYTHON PYTHONPATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 out
if [ $FASTHT_DRY = 1 ]; then
    export TRITON_INTERPRET=1 OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES=
else
    "$PYTHON" -c 'import torch; raise SystemExit(not torch.cuda.is_available())' ||
        fail "torch sees no CUDA GPU here; --dry tries the script without one"
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export scratch
end=$((SECONDS + ${FASTHT_SECONDS:-500}))
rm -f "$out"/{environment.json,{tests,sanitizer,run}.log,{kernels,training}.json,summary.{md,json}}

run_tests() {
    local files options=(-m gpu -q -p no:cacheprovider --durations=10)
    # Only the files with such tests: others need packages that a GPU machine may lack.
    mapfile -t files < <(grep -rlE 'mark\.gpu' tests --include='test_*.py')
    [ ${#files[@]} -gt 0 ] || { echo "no test is marked gpu" && return 1; }
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
export -f run_tests run_sanitizer

# phase NAME LOG COMMAND: runs COMMAND, with %s in it standing for its seconds, into LOG.
phase() {
    local name=$1 log=$2 command=$3 weights=0 before=$SECONDS
    case " $selected " in *" $name "*) ;; *) return ;; esac
    for other in ${all#*"${name%% *}"} $name; do
        case " $selected " in *" $other "*) weights=$((weights + share[$other])) ;; esac
    done
    local limit=$(((end - SECONDS) * share[$name] / weights))
    echo "-- $name (at most $limit s)"
    # shellcheck disable=SC2059  # the command is the format
    timeout -k 5 "$limit" bash -c "$(printf "$command" $((limit - 8)))" >>"$log" 2>&1
    local status=$?
    echo "$name $status $((SECONDS - before)) $limit" >>"$scratch/phases"
    [ $status = 0 ] && return
    echo "   failed with status $status; the end of $log:"
    tail -n 5 "$log" | cut -c 1-300
}

phase environment "$out/run.log" '"$PYTHON" -m benchmarks.gpu.environment "$out/environment.json"'
phase tests "$out/tests.log" 'run_tests'
phase sanitizer "$out/sanitizer.log" 'run_sanitizer %s'
phase kernels "$out/run.log" \
    '"$PYTHON" -m benchmarks.gpu.kernels --out "$out/kernels.json" --seconds %s'
phase training "$out/run.log" \
    '"$PYTHON" -m benchmarks.gpu.training --out "$out/training.json" --seconds %s'
timeout 60 "$PYTHON" -m benchmarks.gpu.report "$out" "$scratch/phases"
