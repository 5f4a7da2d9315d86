#!/usr/bin/env bash
# Asks the training on all hosts to end: it saves a checkpoint first. start.sh goes on from there.
#
#     scripts/tpu/stop.sh --project P --zone Z --name N
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
settings "project zone name" "$@"
needs gcloud https://cloud.google.com/sdk/docs/install

on_hosts all 'sudo systemctl stop fyp-train'
