#!/usr/bin/env bash
# Gives the pod back, and what is on its hosts is gone: the run is in the bucket. gcloud asks first.
#
#     scripts/tpu/delete.sh --project P --zone Z --name N
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
settings "project zone name" "$@"
needs gcloud https://cloud.google.com/sdk/docs/install

gcloud_tpu queued-resources delete "$NAME" --force
