#!/usr/bin/env bash
# Stops the training on all hosts with SIGTERM; it saves a checkpoint first. start.sh resumes from there.
#
#     scripts/tpu/stop.sh --project P --zone Z --name N
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
settings "project zone name" "$@"
needs gcloud https://cloud.google.com/sdk/docs/install

on_hosts all 'sudo systemctl stop fyp-train'
