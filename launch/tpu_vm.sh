#!/usr/bin/env bash
# Runs an experiment on all workers of a Cloud TPU slice: creates it, copies this folder there, installs, runs, deletes it.
# A slice that is taken away meanwhile is created again, and the run goes on from its last checkpoint.
#
#     bash launch/tpu_vm.sh run --name NAME --zone ZONE --type v5litepod-16 [options] CONFIG [--key.sub value ...]
#     bash launch/tpu_vm.sh create --name NAME --zone ZONE --type v5litepod-16 [options]
#     bash launch/tpu_vm.sh delete --name NAME --zone ZONE [options]
#     bash launch/tpu_vm.sh (status | logs | stop) --name NAME --zone ZONE [options]     # of a run with --detach
#
#     status     of each worker: running, or its exit code, and the last lines of its log; whether the slice still stands
#     logs       the log of the first worker, followed until the run ends; Ctrl-C ends only the looking
#     stop       SIGTERM to the run, which ends a training saved; the slice stays, and costs, until `delete`
#
#     --setup COMMAND      run on every worker first: mounts the disk that workdir lies on; without it, --keep is needed
#     --keep               leaves the slice standing at the end; `delete` deletes it
#     --detach             the run goes on when this terminal closes, its output in ~/dpo_jax_detached/log on each worker;
#                          nobody waits for it then: the slice is kept, and not created again when it is taken away
#     --secret VARIABLE    passes this variable of the environment on, as HF_TOKEN and WANDB_API_KEY are where they are
#                          set: in a file of mode 600, which the run reads and deletes; its value is shown nowhere
#     --spot               cheaper, and may be taken away at any time
#     --project PROJECT    default: gcloud's
#     --runtime IMAGE      default: the one for this type
#     --dry-run            prints the commands
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

POLL_SECONDS="${POLL_SECONDS:-30}"
SECRETS=.dpo_jax_secrets
action="" name="" zone="" type="" project="" runtime="" setup="" keep=0 detach=0 spot="" requested=0
secrets=()
for variable in HF_TOKEN WANDB_API_KEY; do [[ -z "${!variable:-}" ]] || secrets+=("$variable"); done

read_options() {
    while [[ "${1:-}" == --* ]]; do
        case "$1" in
            --keep) keep=1 ;;
            --spot) spot=--spot ;;
            --detach) detach=1 keep=1 ;;
            --secret)
                [[ "${2:-}" =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] || fail "--secret wants the name of a variable, not its value."
                [[ -n "${!2:-}" ]] || fail "--secret $2: the environment has no variable $2, or it is empty."
                secrets+=("$2")
                shift
                ;;
            --name | --zone | --type | --project | --runtime | --setup)
                [[ -n "${2:-}" ]] || fail "$1 wants a value."
                printf -v "${1#--}" '%s' "$2"
                shift
                ;;
            *) fail "$1 is not an option of tpu_vm.sh; what is meant for dpo-jax comes after CONFIG." ;;
        esac
        shift
    done
    job=("$@")
}

check_options() {
    [[ -n "$name" && -n "$zone" ]] || fail "Give --name and --zone."
    if [[ "$action" == run || "$action" == create ]]; then
        [[ -n "$type" ]] || fail "Give --type, such as v5litepod-16."
        [[ -n "$runtime" ]] || runtime="$(runtime_of "$type")"
    fi
    if [[ "$action" != run ]]; then
        [[ ${#job[@]} == 0 ]] || fail "$action takes no CONFIG: ${job[0]}"
        return 0
    fi
    [[ ${#job[@]} -gt 0 ]] || fail "Give the CONFIG to run."
    [[ -f "${job[0]}" ]] || fail "No such file: ${job[0]} (paths start at $PWD)"
    local config
    config="$(cd "$(dirname "${job[0]}")" && pwd)/$(basename "${job[0]}")"
    [[ "$config" == "$REPO"/* ]] || fail "${job[0]} must lie in $REPO, which is what is copied to the workers."
    job[0]="${config#"$REPO"/}"
    [[ -n "$setup" || $keep == 1 ]] ||
        fail "Name by --setup the command that mounts a disk for workdir: what lies on the workers dies with them. Or give --keep."
}

runtime_of() {
    case "$1" in
        v5litepod-*) echo v2-alpha-tpuv5-lite ;;
        v5p-*) echo v2-alpha-tpuv5 ;;
        v6e-*) echo v2-alpha-tpuv6e ;;
        v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
        *) fail "The image for $1 is not known here; name it by --runtime." ;;
    esac
}

tpus() { gcloud compute tpus "$@" --zone="$zone" ${project:+--project="$project"}; }

# The same for what changes something: printed, and in a dry run no more than that.
change() {
    quoted gcloud compute tpus "$@" --zone="$zone" ${project:+--project="$project"}
    [[ "$DRY_RUN" == 1 ]] || tpus "$@"
}

# ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED ...; nothing where there is no such request.
state() { tpus queued-resources describe "$name" --format='value(state.state)' 2>/dev/null || true; }

request() {
    requested=1
    change queued-resources create "$name" --node-id="$name" --accelerator-type="$type" \
        --runtime-version="$runtime" ${spot:+"$spot"}
}

delete() { change queued-resources delete "$name" --force --quiet; }

create() {
    local now
    if [[ "$DRY_RUN" == 1 ]]; then
        request
        echo "# waits until the request is ACTIVE"
        return
    fi
    while now="$(state)" && [[ "$now" != ACTIVE ]]; do
        case "$now" in
            "") request ;;
            SUSPEND*) delete ;;
            FAILED)
                say "The request failed: gcloud compute tpus queued-resources describe $name --zone=$zone tells why."
                exit 1
                ;;
            *)
                say "$name: $now"
                sleep "$POLL_SECONDS"
                ;;
        esac
    done
}

on_workers() { change tpu-vm ssh "$name" --worker="${2:-all}" --quiet --ssh-flag=-oServerAliveInterval=30 --command="$1"; }

# A file and not ssh's standard input, which gcloud gives to all workers at once, so that only one would read it. It
# has mode 600 here, and scp gives it that there.
copy_secrets() {
    local variable file="$scratch/$SECRETS"
    echo "# $SECRETS holds ${secrets[*]}"
    if [[ "$DRY_RUN" == 0 ]]; then
        for variable in "${secrets[@]}"; do printf '%s=%s\n' "$variable" "$(quoted "${!variable}")"; done |
            (umask 077 && cat >"$file") || return
    fi
    change tpu-vm scp "$file" "$name:" --worker=all --quiet
}

# What git knows here and what it does not ignore, as it is now. The images have Python 3.10, so uv brings one.
work() {
    local archive="$scratch/dpo_jax.tar.gz" python="\$HOME/.local/bin/uv python" start="" read_secrets=""
    [[ $detach == 0 ]] || start="bash launch/detached.sh start "
    [[ ${#secrets[@]} == 0 ]] || read_secrets="set -a && . ~/$SECRETS && set +a && rm ~/$SECRETS && "
    if [[ "$DRY_RUN" == 0 ]]; then
        (cd "$REPO" && git ls-files -z --cached --others --exclude-standard | tar -czf "$archive" --null -T -) || return
    fi
    change tpu-vm scp "$archive" "$name:" --worker=all --quiet &&
        on_workers "mkdir -p dpo_jax && tar -xzf dpo_jax.tar.gz -C dpo_jax" &&
        on_workers "PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --user --quiet uv && $python install 3.12" &&
        { [[ -z "$setup" ]] || on_workers "$setup"; } &&
        { [[ ${#secrets[@]} == 0 ]] || copy_secrets; } &&
        on_workers "cd dpo_jax && ${read_secrets}DPO_JAX_ACCELERATOR=tpu PYTHON=\$($python find 3.12) ${start}bash launch/local.sh $(quoted "${job[@]}")"
}

# Asked of a slice that stood already: a run that is detached there needs the files that would be copied over it.
is_busy() {
    local command="bash dpo_jax/launch/detached.sh status" told
    told="$(tpus tpu-vm ssh "$name" --worker=all --quiet --command="$command" 2>/dev/null || true)"
    [[ "$told" == *": running (process "* ]]
}

taken_away() {
    sleep "$POLL_SECONDS" # until the service knows of it
    local now
    now="$(state) $(tpus tpu-vm describe "$name" --format='value(state)' 2>/dev/null || true)"
    [[ "$now" == *SUSPEND* || "$now" == *PREEMPTED* ]]
}

finish() {
    rm -rf "$scratch"
    [[ $keep == 1 ]] || delete
}

run() {
    local code
    scratch="$(mktemp -d)"
    trap finish EXIT
    while create; do
        if [[ $requested == 0 ]] && is_busy; then
            keep=1
            fail "A detached run goes on there; \`stop\` it first, or look at it with \`status\` and \`logs\`."
        fi
        code=0
        work || code=$?
        if [[ $code == 0 ]]; then
            [[ $detach == 0 ]] || say "It runs there. status, logs, stop, and at last delete: with --name $name --zone $zone"
            return 0
        fi
        taken_away || exit "$code"
        say "$name was taken away; it is created again, and the run goes on from its last checkpoint."
        delete
    done
}

detached() { on_workers "bash dpo_jax/launch/detached.sh $1" "${2:-all}"; }

status() {
    local now=ACTIVE
    [[ "$DRY_RUN" == 1 ]] || now="$(state)"
    if [[ "$now" != ACTIVE ]]; then
        echo "$name: ${now:-there is no such slice}"
        exit 3
    fi
    detached status
}

logs() { detached logs 0; }

stop() { detached stop; }

take_dry_run "$@"
action="${arguments[0]:-}"
case "$action" in
    create | run | delete | status | logs | stop) ;;
    *) fail "Usage: bash launch/tpu_vm.sh (run | create | delete | status | logs | stop) --name NAME --zone ZONE [options] [CONFIG ...]" ;;
esac
read_options "${arguments[@]:1}"
check_options
"$action"
