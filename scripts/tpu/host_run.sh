#!/usr/bin/env bash
# Runs on a host: executes the command of RUN, and writes to runs/RUN.status how it ended. Host 0 writes metrics,
# TensorBoard files and images to runs/RUN. They are copied to the bucket every minute; a host with a new disk copies
# them back first. Whole files are copied, since a mounted bucket stores a file when it is closed, and a training that
# is killed closes none.
#
#     host_run.sh RUN COMMAND...
set -uo pipefail
cd "$(dirname "$0")/../.." || exit
run=$1 out=runs/$1 kept=${FYP_BUCKET:-/mnt/bucket}/runs/$1/log
shift
export PATH="$PWD/.venv/bin:$PATH"

# On GKE the environment says which host this is; on a TPU VM its metadata server does.
metadata=http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number
host=${TPU_WORKER_ID:-$(curl -fsS -H 'Metadata-Flavor: Google' $metadata)}

keep() {
    [ "$host" != 0 ] || { mkdir -p "$kept" && cp -ru "$out/." "$kept/"; }
}

mkdir -p "$out"
if [ "$host" = 0 ] && [ -d "$kept" ]; then cp -ru --preserve=timestamps "$kept/." "$out/"; fi
# The sleep may outlive this script by a minute, so it must not hold its pipes open.
(while sleep "${FYP_KEEP_EVERY:-60}" > /dev/null 2>&1; do keep; done) &
keeper=$!

asked=""
"$@" &
child=$!
trap 'asked=yes; kill -TERM "$child" 2> /dev/null' TERM
while true; do # a signal ends `wait` before the child ends
    wait "$child"
    status=$?
    kill -0 "$child" 2> /dev/null || break
done
kill "$keeper" 2> /dev/null
keep

# After SIGTERM train.py also ends with status 0. GKE would take that for a finished job and not restart it.
word="failed with status $status"
if [ "$status" -eq 0 ]; then word=finished; fi
if [ -n "$asked" ] && { [ "$status" -eq 0 ] || [ "$status" -eq 143 ]; }; then word=stopped status=143; fi
echo "fyp:$word" > "runs/$run.status"
exit "$status"
