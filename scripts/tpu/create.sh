#!/usr/bin/env bash
# Asks for a pod: a queued resource NAME that holds one TPU slice, NAME too. It is ACTIVE when its hosts can be used.
#
#     scripts/tpu/create.sh --project P --zone Z --name N --type v5litepod-16 --runtime v2-alpha-tpuv5-lite [--spot]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
settings "project zone name type runtime spot?" "$@"
[ ${#rest[@]} -eq 0 ] || fail "what is ${rest[0]}?"
needs gcloud https://cloud.google.com/sdk/docs/install

# With this scope the roles of the service account alone say what the hosts may do, and they may write to the bucket.
flags=(--node-id="$NAME" --accelerator-type="$TYPE" --runtime-version="$RUNTIME"
    --scopes=https://www.googleapis.com/auth/cloud-platform)
[ -z "$SPOT" ] || flags+=(--spot)
gcloud_tpu queued-resources create "$NAME" "${flags[@]}"
