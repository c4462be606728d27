#!/usr/bin/env bash
# Keeps a command running when the terminal that started it closes; `tpu_vm.sh run --detach` calls it on every worker.
#
#     bash launch/detached.sh start COMMAND [ARGUMENT ...]    # what it prints goes into the file `log`
#     bash launch/detached.sh status      # running, or its exit code, and the last lines of the log
#     bash launch/detached.sh logs        # the log, followed until the command ends
#     bash launch/detached.sh stop        # SIGTERM, which ends a training saved; waits for the end
#
# One command at a time. Exit code of status: 0 while it runs, then its own, 3 where there is none; of stop: 1 if it runs
# on after STOP_SECONDS (180).
# DPO_JAX_DETACHED names another folder for `log`, `process` and `code` than ~/dpo_jax_detached.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

folder="${DPO_JAX_DETACHED:-$HOME/dpo_jax_detached}"
STOP_SECONDS="${STOP_SECONDS:-180}"
SHOWN_LINES=10

process() { cat "$folder/process" 2>/dev/null || true; }

# A number alone may be another process's by now.
is_running() { [[ ! -f "$folder/code" ]] && grep -qs detached.sh "/proc/$(process)/cmdline"; }

start() {
    [[ $# -gt 0 ]] || usage
    ! is_running || fail "$(hostname): another command runs here (process $(process)); stop it first."
    mkdir -p "$folder"
    rm -f "$folder/code" "$folder/process"
    # A session of its own, so that neither a terminal's end nor its Ctrl-C reaches it.
    setsid bash "${BASH_SOURCE[0]}" keep "$@" </dev/null >"$folder/log" 2>&1 &
    while [[ ! -s "$folder/process" ]]; do # once it is there, `stop` reaches it
        kill -0 $! 2>/dev/null || fail "$(hostname): it did not start: $(<"$folder/log")"
        sleep 0.05
    done
    echo "$(hostname): started; its log is $folder/log"
}

# What `start` starts: the command, and its exit code in a file. `stop` tells all of the session; this waits for them.
keep() {
    local code=0
    trap : TERM HUP
    printf '%s\n' $$ >"$folder/process"
    "$@" || code=$?
    printf '%s\n' "$code" >"$folder/code"
}

status() {
    local code=0 why
    if is_running; then
        echo "$(hostname): running (process $(process)); the end of $folder/log:"
    elif [[ -f "$folder/code" ]]; then
        code="$(<"$folder/code")"
        [[ "$code" != 137 ]] || why=" (killed: where nobody did, memory ran out, which dmesg shows)"
        echo "$(hostname): ended with exit code $code${why:-}; the end of $folder/log:"
    elif [[ -f "$folder/process" ]]; then
        code=3
        echo "$(hostname): gone without an exit code, as after a restart of the machine; the end of $folder/log:"
    else
        echo "$(hostname): nothing was started here"
        return 3
    fi
    tail -n "$SHOWN_LINES" "$folder/log" | sed 's/^/    /'
    return "$code"
}

logs() {
    [[ -f "$folder/log" ]] || fail "$(hostname): nothing was started here."
    if is_running; then
        tail -n +1 -f --pid="$(process)" "$folder/log"
    else
        cat "$folder/log"
    fi
}

stop() {
    local until=$((SECONDS + STOP_SECONDS))
    ! is_running || kill -TERM -- "-$(process)" || true # it may end meanwhile
    while is_running && ((SECONDS < until)); do sleep 0.2; done
    status || true
    ! is_running
}

usage() { fail "Usage: bash launch/detached.sh (start COMMAND ... | status | logs | stop)"; }

case "${1:-}" in
    start | keep | status | logs | stop) "$@" ;;
    *) usage ;;
esac
