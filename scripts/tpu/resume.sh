#!/usr/bin/env bash
# Keeps a run going until all its steps are done. If there is no pod, or it was preempted, the script creates one,
# installs the project and starts the training; then it checks again every --poll seconds. It takes the flags of
# create.sh and start.sh. Leave it running (in tmux) on a machine that stays on; you may stop and start it again. It
# ends with status 1 after five failures in a row.
#
#     scripts/tpu/resume.sh --project P --zone Z --name N --type v5litepod-16 --runtime v2-alpha-tpuv5-lite --spot \
#         --bucket B --run sd14_motion --config configs/sd14/stage2_motion.yaml data.path=... [a.b=c ...]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
settings "project zone name type runtime spot? bucket run config poll=60" "$@"
[ -f "$root/$CONFIG" ] || fail "$CONFIG: no such config file"
needs gcloud https://cloud.google.com/sdk/docs/install

describe=(queued-resources describe "$NAME" "--format=value(state.state)")
status="fyp_jax/scripts/tpu/host_status.sh $RUN 2> /dev/null || echo fyp:none"
pod=("${env_flag[@]}" --project "$PROJECT" --zone "$ZONE" --name "$NAME" ${dry_run:+--dry-run})
errors=$(mktemp)
trap 'rm -f "$errors"' EXIT

create() {
    "$tpu/create.sh" "${pod[@]}" --type "$TYPE" --runtime "$RUNTIME" ${SPOT:+--spot}
}

# A preempted pod stays as a SUSPENDED request, which cannot be resumed: it is deleted and created again.
recreate() {
    gcloud_tpu queued-resources delete "$NAME" --force --quiet && create
}

install_and_start() {
    "$tpu/install.sh" "${pod[@]}" &&
        "$tpu/start.sh" "${pod[@]}" --bucket "$BUCKET" --run "$RUN" --config "$CONFIG" -- "${rest[@]}"
}

# Checks the pod and the training once and acts on it. Fails if a command failed, as it may when a pod is preempted.
check() {
    local state words
    if ! state=$(gcloud_tpu "${describe[@]}" 2> "$errors"); then
        grep -q NOT_FOUND "$errors" || { cat "$errors" >&2 && return 1; }
        state=NOT_FOUND
    fi
    echo "$(date '+%F %T') pod: $state"
    case $state in
        NOT_FOUND) create ;;
        SUSPENDED | FAILED) recreate ;;
        ACTIVE)
            words=$(on_hosts all "$status") || return 1
            case $words in # the states of all hosts; the first pattern that matches decides
                *fyp:failed*) echo "the training failed; scripts/tpu/watch.sh shows its log" >&2 && return 1 ;;
                *fyp:running*) ;;
                *fyp:none* | *fyp:stopped*) install_and_start ;;
                *fyp:finished*) finished=yes ;;
                *) echo "no host reports the state of its training" >&2 && return 1 ;;
            esac
            ;;
        *) ;; # the state is about to change
    esac
}

if [ -n "$dry_run" ]; then # the commands for a preempted pod
    gcloud_tpu "${describe[@]}" && recreate && gcloud_tpu "${describe[@]}" && on_hosts all "$status" &&
        install_and_start
    exit 0
fi
finished="" failures=0
while [ -z "$finished" ]; do
    if check; then failures=0; else failures=$((failures + 1)); fi
    [ $failures -lt 5 ] || { echo "resume.sh: five failures in a row" >&2 && exit 1; }
    [ -n "$finished" ] || sleep "$POLL"
done
echo "$RUN is finished; scripts/tpu/delete.sh deletes the pod"
