#!/usr/bin/env bash
# Keeps a run going until its steps are done: makes the pod where there is none or it was taken away, installs, starts,
# and looks again every --poll seconds. Takes what create.sh and start.sh take. Leave it running (tmux) on a machine
# that stays on; stopped and started again, it goes on. It ends with status 1 after five failures in a row.
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

# A pod that was taken away stays as a SUSPENDED request, which cannot be woken: it is deleted and made again.
create_again() {
    gcloud_tpu queued-resources delete "$NAME" --force --quiet && create
}

install_and_start() {
    "$tpu/install.sh" "${pod[@]}" &&
        "$tpu/start.sh" "${pod[@]}" --bucket "$BUCKET" --run "$RUN" --config "$CONFIG" -- "${rest[@]}"
}

# One look, and what it asks for; fails where something did not work, which a taken pod may well be the reason of.
look() {
    local state words
    if ! state=$(gcloud_tpu "${describe[@]}" 2> "$errors"); then
        grep -q NOT_FOUND "$errors" || { cat "$errors" >&2 && return 1; }
        state=NOT_FOUND
    fi
    echo "$(date '+%F %T') pod: $state"
    case $state in
        NOT_FOUND) create ;;
        SUSPENDED | FAILED) create_again ;;
        ACTIVE)
            words=$(on_hosts all "$status") || return 1
            case $words in # of all hosts: the first that applies
                *fyp:failed*) echo "the training failed: see scripts/tpu/watch.sh" >&2 && return 1 ;;
                *fyp:running*) ;;
                *fyp:none* | *fyp:stopped*) install_and_start ;;
                *fyp:finished*) finished=yes ;;
                *) echo "no host says how its training is" >&2 && return 1 ;;
            esac
            ;;
        *) ;; # on its way from one of these to another
    esac
}

if [ -n "$dry_run" ]; then # the way of a pod that was taken away
    gcloud_tpu "${describe[@]}" && create_again && gcloud_tpu "${describe[@]}" && on_hosts all "$status" &&
        install_and_start
    exit 0
fi
finished="" failures=0
while [ -z "$finished" ]; do
    if look; then failures=0; else failures=$((failures + 1)); fi
    [ $failures -lt 5 ] || { echo "resume.sh: five failures in a row" >&2 && exit 1; }
    [ -n "$finished" ] || sleep "$POLL"
done
echo "$RUN is finished; scripts/tpu/delete.sh gives the pod back"
