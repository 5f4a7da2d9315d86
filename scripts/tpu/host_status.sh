#!/usr/bin/env bash
# Runs on a host: prints the state of RUN's training, one of fyp:running, finished, stopped (by SIGTERM), failed, none.
set -euo pipefail
status=$(dirname "$0")/../../runs/$1.status
if systemctl is-active --quiet fyp-train; then
    echo fyp:running
elif [ -f "$status" ]; then
    cat "$status"
else
    echo fyp:none
fi
