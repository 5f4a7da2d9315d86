#!/usr/bin/env bash
# Prints the state of the pod and of the training on each host, and the end of each log; --follow shows host 0's log.
#
#     scripts/tpu/watch.sh --project P --zone Z --name N --run sd14_motion [--follow]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
settings "project zone name run follow?" "$@"
needs gcloud https://cloud.google.com/sdk/docs/install

gcloud_tpu queued-resources describe "$NAME" --format='value(state.state)'
# For `tail` the progress bar is one long line, with a carriage return at each step.
on_hosts all "hostname; fyp_jax/scripts/tpu/host_status.sh $RUN; tail -c 4000 fyp_train.log | tr '\\r' '\\n' | tail -n 3"
[ -z "$FOLLOW" ] || on_hosts 0 'tail -F fyp_train.log'
