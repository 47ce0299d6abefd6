# shellcheck shell=bash
# Steps that run side by side, one to a core. To be sourced by a script with `set -euo pipefail`.
#
#   step NAME COMMAND...    starts a command as soon as a core is free. What it prints is shown whole
#                           when it has ended, so that no two steps mix.
#   after NAME              waits for the step of that name.
#   finish                  waits for all of them.
#   alone NAME COMMAND...   waits for all of them and runs one that takes every core, in plain sight.
#   left_out WHAT: WHY      says that something is not run: now, and once more under the table.
#
# The first failure ends the script, with its log, and what still runs with it. At the end, good or
# not, a table says how long each step took and how much of a processor's time.

STEP_CORES=${STEP_CORES:-$(nproc)}
STEP_LOGS=$(mktemp -d)
STEP_TABLE=() # a line a step: seconds, seconds of processes, seconds of the system, name
STEP_BEGIN=$EPOCHREALTIME
declare -A STEP_RUNNING=() # names by process id

step() {
    while [ ${#STEP_RUNNING[@]} -ge "$STEP_CORES" ]; do _reap; done
    echo "-- $1 begins"
    set -m # a process group of its own can be ended whole
    _timed "$@" >"$STEP_LOGS/$1" 2>&1 </dev/null &
    STEP_RUNNING[$!]=$1
    set +m
}

after() {
    while [[ "|$(printf '%s|' "${STEP_RUNNING[@]}")" == *"|$1|"* ]]; do _reap; done
}

finish() {
    while [ ${#STEP_RUNNING[@]} -gt 0 ]; do _reap; done
}

alone() {
    finish
    echo "-- $1 begins"
    set -m
    _timed "$@" 2>&1 </dev/null &
    STEP_RUNNING[$!]=$1
    set +m
    finish
}

left_out() {
    echo "-- NOT RUN: $*"
    echo "$*" >>"$STEP_LOGS/left out"
}

# _timed NAME COMMAND...: leaves what `time` says beside the log, and then its status, by which the
# step has ended. Ends the shell that it runs in.
_timed() {
    local TIMEFORMAT='%R %U %S'
    set +em # no `||` here: bash would then ignore the command's own `set -e`
    { time { (set -e; "${@:2}") 2>&3; } } 3>&2 2>"$STEP_LOGS/$1.seconds"
    local status=$?
    echo $status >"$STEP_LOGS/$1.status"
    exit $status
}

# Looks for files in place of `wait -n`, which loses a step that ends while another begins.
_reap() {
    local pid name status
    while :; do
        for pid in "${!STEP_RUNNING[@]}"; do
            name=${STEP_RUNNING[$pid]}
            [ ! -f "$STEP_LOGS/$name.status" ] || break 2
            kill -0 "$pid" 2>/dev/null || break 2 # killed, or just ended
        done
        sleep 0.2
    done
    status=$(cat "$STEP_LOGS/$name.status" 2>/dev/null || echo 137)
    unset "STEP_RUNNING[$pid]"
    STEP_TABLE+=("$(tail -n 1 "$STEP_LOGS/$name.seconds" 2>/dev/null) $name")
    echo "== $name"
    [ ! -f "$STEP_LOGS/$name" ] || cat "$STEP_LOGS/$name"
    [ $status = 0 ] && return
    echo "== $name failed with status $status" >&2
    exit $status
}

_end() {
    local status=$? pid
    trap - EXIT
    for pid in "${!STEP_RUNNING[@]}"; do
        echo "-- ${STEP_RUNNING[$pid]}: ended unfinished"
        kill -TERM -- "-$pid" 2>/dev/null || true
    done
    [ ${#STEP_RUNNING[@]} = 0 ] || wait "${!STEP_RUNNING[@]}" 2>/dev/null || true
    local missing=''
    [ ! -f "$STEP_LOGS/left out" ] || missing=$(sed 's/^/NOT RUN: /' "$STEP_LOGS/left out")
    rm -rf "$STEP_LOGS"
    printf '%s\n' "${STEP_TABLE[@]}" | awk -v begin="$STEP_BEGIN" -v end="$EPOCHREALTIME" '
        BEGIN { printf "\n%8s %10s  %s\n", "seconds", "processor", "step" }
        NF { name = $0; sub(/^[^ ]+ [^ ]+ [^ ]+ /, "", name); sum += $2 + $3
             printf "%8.1f %10.1f  %s\n", $1, $2 + $3, name }
        END { printf "%8.1f %10.1f  all\n", end - begin, sum }'
    [ -z "$missing" ] || printf '\n%s\n' "$missing"
    exit $status
}
trap _end EXIT
