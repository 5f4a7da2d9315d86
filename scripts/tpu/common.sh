#!/usr/bin/env bash
# Functions that the scripts in this folder source: settings, errors, and `run`, which runs a command or prints it.
set -euo pipefail
tpu=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck disable=SC2034 # used by the scripts that source this
root=$(cd "$tpu/../.." && pwd)

# Ends the script for a mistake of the user: one line and exit status 2, as train.py does.
fail() {
    echo "${0##*/}: $*" >&2
    exit 2
}

# Prints the help of a script: the comment at its top.
help() {
    sed -n '2,/^[^#]/s/^#\( \|$\)//p' "$0"
    echo
    echo "Settings are flags, or lines of scripts/tpu/pod.env (--env FILE names another file); see pod.env.example."
    echo "--dry-run prints the commands, ready to paste into a shell, and runs none."
}

# settings "SPEC..." "$@": reads the settings. In SPEC, `name` is required, `name=value` has a default, and `name?` is
# a switch. --name VALUE, or NAME=VALUE in the settings file, sets $NAME; words that are no flags go to `rest`.
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
                    fail "unknown flag $1; --help lists the flags"
                fi
                ;;
            *) rest+=("$1") ;;
        esac
        [ $# -eq 0 ] || shift
    done
    for word in $spec; do # ignore the environment, so that the same words always give the same command
        name=${word%%[=?]*} value=""
        [[ $word != *=* ]] || value=${word#*=}
        printf -v "${name^^}" '%s' "$value"
    done
    [ -z "$env" ] || [ -f "$env" ] || fail "$env: there is no such settings file"
    # shellcheck disable=SC2034 # used by the scripts that source this
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
    # The command that every host runs. The user's overrides come last, so they take precedence.
    # shellcheck disable=SC2034 # used by the scripts that source this
    train=(python train.py --config "${CONFIG:-}" "output_dir=runs/${RUN:-}"
        "checkpoint.folder=gs://${BUCKET:-}/runs/${RUN:-}/checkpoints" "${rest[@]}")
    [[ ${RUN:-a} =~ ^[A-Za-z0-9_-]+$ ]] || fail "--run $RUN: use only letters, digits, _ and -"
}

# needs TOOL WHERE: ends the script if TOOL is not installed; WHERE says how to get it. Does nothing in a dry run.
needs() {
    [ -n "$dry_run" ] || command -v "$1" > /dev/null || fail "$1 is not installed: $2"
}

# Prints words, quoted so that a shell reads the same words.
quote() {
    local word line=()
    for word in "$@"; do
        [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word=${word@Q}
        line+=("$word")
    done
    echo "${line[*]}"
}

# Runs a command, or prints it in a dry run.
run() {
    if [ -n "$dry_run" ]; then quote "$@"; else "$@"; fi
}

# gcloud_tpu GROUP VERB ARGUMENTS...: runs gcloud compute tpus in this project and zone.
gcloud_tpu() {
    run gcloud compute tpus "$@" --project="$PROJECT" --zone="$ZONE"
}

# on_hosts WORKER COMMAND: runs COMMAND in the home folder of one host (WORKER is 0, 1, ...), or of all hosts (all).
on_hosts() {
    # shellcheck disable=SC2153 # a setting
    gcloud_tpu tpu-vm ssh "$NAME" --worker="$1" --command="$2"
}
