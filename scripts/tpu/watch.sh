#!/usr/bin/env bash
# Says how the pod and the training on each host are, with the last lines of their logs; --follow stays with host 0.
#
#     scripts/tpu/watch.sh --project P --zone Z --name N --run sd14_motion [--follow]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
settings "project zone name run follow?" "$@"
needs gcloud https://cloud.google.com/sdk/docs/install

gcloud_tpu queued-resources describe "$NAME" --format='value(state.state)'
# The progress bar is one long line to `tail`, with a carriage return for each step.
on_hosts all "hostname; fyp_jax/scripts/tpu/host_status.sh $RUN; tail -c 4000 fyp_train.log | tr '\\r' '\\n' | tail -n 3"
[ -z "$FOLLOW" ] || on_hosts 0 'tail -F fyp_train.log'
