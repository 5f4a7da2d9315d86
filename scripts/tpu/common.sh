#!/usr/bin/env bash
# What the scripts beside it share: settings, errors, and `run`, which runs a command or prints it. To be sourced.
set -euo pipefail
tpu=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck disable=SC2034 # used by those who source this
root=$(cd "$tpu/../.." && pwd)

# A user's mistake: one line, status 2, as train.py has it.
fail() {
    echo "${0##*/}: $*" >&2
    exit 2
}

# The comment that opens a script is its help.
help() {
    sed -n '2,/^[^#]/s/^#\( \|$\)//p' "$0"
    echo
    echo "Settings: flags, or else scripts/tpu/pod.env (--env FILE for another), whose form is pod.env.example."
    echo "--dry-run prints the commands, ready to be pasted, and runs none."
}

# settings "SPEC..." "$@": `name` has to be given, `name=value` has a default, `name?` is a switch. --name VALUE,
# or NAME=VALUE in the settings file, becomes $NAME, and what is no flag stands in `rest`.
settings() {
    local spec=" $1 " env="" word name value given=()
    shift
    rest=() dry_run="" env_flag=()
    while [ $# -gt 0 ]; do
        word=${1%%=*} name=${1#--} name=${name%%=*}
        case $word in
            --help) help && exit 0 ;;
            --dry-run) dry_run=yes ;;
            --) shift && rest+=("$@") && break ;;
            --*)
                if [[ $spec == *" $name? "* && $1 != *=* ]]; then
                    given+=("$name=yes")
                elif [[ $name == env || $spec == *" $name "* || $spec == *" $name="* ]]; then
                    [[ $1 == *=* ]] || { [ $# -gt 1 ] && set -- "$1=$2" "${@:3}"; } || fail "$1 needs a value"
                    if [ "$name" = env ]; then env=${1#*=}; else given+=("$name=${1#*=}"); fi
                else
                    fail "no flag $1; --help tells which there are"
                fi
                ;;
            *) rest+=("$1") ;;
        esac
        [ $# -eq 0 ] || shift
    done
    for word in $spec; do # nothing comes from the environment, so that the same words are the same command
        name=${word%%[=?]*} value=""
        [[ $word != *=* ]] || value=${word#*=}
        printf -v "${name^^}" '%s' "$value"
    done
    [ -z "$env" ] || [ -f "$env" ] || fail "$env: no such settings file"
    # shellcheck disable=SC2034 # used by those who source this
    [ -z "$env" ] || env_flag=(--env "$env") # for a script that calls another
    [ -n "$env" ] || env=$tpu/pod.env
    # shellcheck source=/dev/null
    [ ! -f "$env" ] || source "$env"
    for word in "${given[@]}"; do
        name=${word%%=*} && printf -v "${name^^}" '%s' "${word#*=}"
    done
    for word in $spec; do
        name=${word^^}
        [[ $word == *[=?]* || -n ${!name} ]] || fail "--$word is missing (or $name in $env)"
    done
    [ -z "${BUCKET:-}" ] || { BUCKET=${BUCKET#gs://} && BUCKET=${BUCKET%/}; }
    # The command of every host; overrides of the user's come last, and win.
    # shellcheck disable=SC2034 # used by those who source this
    train=(python train.py --config "${CONFIG:-}" "out=runs/${RUN:-}"
        "checkpoint.folder=gs://${BUCKET:-}/runs/${RUN:-}/checkpoints" "${rest[@]}")
    [[ ${RUN:-a} =~ ^[A-Za-z0-9_-]+$ ]] || fail "--run $RUN: letters, digits, _ and - only"
}

# needs TOOL WHERE: before the first command, unless none is run.
needs() {
    [ -n "$dry_run" ] || command -v "$1" > /dev/null || fail "$1 is not installed: $2"
}

# Words as a shell reads them back.
quote() {
    local word line=()
    for word in "$@"; do
        [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word=${word@Q}
        line+=("$word")
    done
    echo "${line[*]}"
}

run() {
    if [ -n "$dry_run" ]; then quote "$@"; else "$@"; fi
}

# gcloud_tpu GROUP VERB ARGUMENTS...: of this project and zone.
gcloud_tpu() {
    run gcloud compute tpus "$@" --project="$PROJECT" --zone="$ZONE"
}

# on_hosts WORKER COMMAND: in the home folder of one host (0, ...), or of all at once.
on_hosts() {
    # shellcheck disable=SC2153 # a setting
    gcloud_tpu tpu-vm ssh "$NAME" --worker="$1" --command="$2"
}
