#!/usr/bin/env bash
# Requests a pod: a queued resource NAME with one TPU slice, also NAME. When its state is ACTIVE, its hosts are ready.
#
#     scripts/tpu/create.sh --project P --zone Z --name N --type v5litepod-16 --runtime v2-alpha-tpuv5-lite [--spot]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
settings "project zone name type runtime spot?" "$@"
[ ${#rest[@]} -eq 0 ] || fail "unexpected argument ${rest[0]}; --help lists the flags"
needs gcloud https://cloud.google.com/sdk/docs/install

# With this scope, only the roles of the service account limit what the hosts may do; they may write to the bucket.
flags=(--node-id="$NAME" --accelerator-type="$TYPE" --runtime-version="$RUNTIME"
    --scopes=https://www.googleapis.com/auth/cloud-platform)
[ -z "$SPOT" ] || flags+=(--spot)
gcloud_tpu queued-resources create "$NAME" "${flags[@]}"
