#!/usr/bin/env bash
# On a host: how the training of RUN is, as one of fyp:running, finished, stopped (asked to end), failed, none.
set -euo pipefail
status=$(dirname "$0")/../../runs/$1.status
if systemctl is-active --quiet fyp-train; then
    echo fyp:running
elif [ -f "$status" ]; then
    cat "$status"
else
    echo fyp:none
fi
