#!/usr/bin/env bash
# Copies a run from the bucket to OUT/RUN on this machine: checkpoints/, and log/ with metrics.csv, TensorBoard files
# and images. Run it again to copy what is new.
#
#     scripts/tpu/copy_out.sh --project P --bucket B --run sd14_motion [--out runs]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
settings "project bucket run out=runs" "$@"
needs gcloud https://cloud.google.com/sdk/docs/install

run mkdir -p "$OUT/$RUN"
run gcloud storage rsync --recursive "gs://$BUCKET/runs/$RUN" "$OUT/$RUN" --project="$PROJECT"
