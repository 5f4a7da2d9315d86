#!/usr/bin/env bash
# Starts train.py on all hosts, in the background; its log is fyp_train.log on each host. If the run was stopped, the
# same command resumes from the newest checkpoint in gs://BUCKET/runs/RUN/checkpoints. The bucket is at /mnt/bucket.
#
#     scripts/tpu/start.sh --project P --zone Z --name N --bucket B --run sd14_motion \
#         --config configs/sd14/stage2_motion.yaml data.path=/mnt/bucket/records/captioned_videos [a.b=c ...]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
settings "project zone name bucket run config" "$@"
[ -f "$root/$CONFIG" ] || fail "$CONFIG: no such config file"
needs gcloud https://cloud.google.com/sdk/docs/install

on_hosts all "$(quote fyp_jax/scripts/tpu/host_start.sh "$BUCKET" "$RUN" "${train[@]}")"
