#!/usr/bin/env bash
# Deletes the pod and all that is on its hosts; the run stays in the bucket. gcloud asks before it deletes.
#
#     scripts/tpu/delete.sh --project P --zone Z --name N
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
settings "project zone name" "$@"
needs gcloud https://cloud.google.com/sdk/docs/install

gcloud_tpu queued-resources delete "$NAME" --force
