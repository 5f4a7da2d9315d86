#!/usr/bin/env bash
# Runs on a host, called by start.sh: mounts the bucket at /mnt/bucket and starts the training as a systemd service.
#
#     host_start.sh BUCKET RUN python train.py ...
#
# A service outlives the ssh session, and its name is unique, so the training cannot start twice. When a spot host is
# preempted, systemd sends SIGTERM and waits; `After` keeps network and bucket up until the checkpoint is saved.
set -euo pipefail
bucket=$1 run=$2
shift 2
project=$(cd "$(dirname "$0")/../.." && pwd) user=$(id -un)

if systemctl is-active --quiet fyp-train; then
    echo "$(hostname): a training is running already; scripts/tpu/stop.sh stops it" >&2
    exit 1
fi
sudo systemctl reset-failed fyp-train 2> /dev/null || true

if ! mountpoint -q /mnt/bucket; then
    sudo mkdir -p /mnt/bucket
    sudo chown "$user" /mnt/bucket
    sudo systemctl reset-failed fyp-bucket 2> /dev/null || true
    # Records are read in random order. gcsfuse caches them on the disk, up to 40 GB, for later epochs.
    sudo systemd-run --quiet --unit=fyp-bucket --uid="$user" -p After=network-online.target \
        gcsfuse --foreground --implicit-dirs --cache-dir=/tmp/fyp-bucket-cache --file-cache-max-size-mb=40000 \
        --file-cache-cache-file-for-range-read "$bucket" /mnt/bucket
    for _ in $(seq 30); do mountpoint -q /mnt/bucket || sleep 1; done
    mountpoint -q /mnt/bucket || { echo "$(hostname): cannot mount gs://$bucket" >&2 && exit 1; }
fi

# The command is in a file, since systemd expands $ and % in arguments.
command=$HOME/fyp_train.sh
printf '%q ' exec "$project/scripts/tpu/host_run.sh" "$run" "$@" > "$command"
rm -f "$project/runs/$run.status"
sudo systemd-run --quiet --unit=fyp-train --uid="$user" --working-directory="$project" \
    -p "After=network-online.target fyp-bucket.service" -p KillMode=mixed -p TimeoutStopSec=600 \
    -p SuccessExitStatus=143 -p "StandardOutput=append:$HOME/fyp_train.log" \
    -p "StandardError=append:$HOME/fyp_train.log" bash "$command"
echo "$(hostname): started"
