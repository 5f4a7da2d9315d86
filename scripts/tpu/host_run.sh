#!/usr/bin/env bash
# On a host: runs the command of RUN, and writes to runs/RUN.status how it ended. Host 0 writes metrics, TensorBoard
# and pictures into runs/RUN; they are copied to the bucket every minute, and back where the disk is a new one.
# Whole copies, as a file in a mounted bucket is stored when it is closed, which a killed training never does.
#
#     host_run.sh RUN COMMAND...
set -uo pipefail
cd "$(dirname "$0")/../.." || exit
run=$1 out=runs/$1 kept=${FYP_BUCKET:-/mnt/bucket}/runs/$1/log
shift
export PATH="$PWD/.venv/bin:$PATH"

# GKE says which host this is by the environment, a TPU VM by its metadata server.
metadata=http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number
host=${TPU_WORKER_ID:-$(curl -fsS -H 'Metadata-Flavor: Google' $metadata)}

keep() {
    [ "$host" != 0 ] || { mkdir -p "$kept" && cp -ru "$out/." "$kept/"; }
}

mkdir -p "$out"
if [ "$host" = 0 ] && [ -d "$kept" ]; then cp -ru --preserve=timestamps "$kept/." "$out/"; fi
# The sleep may outlive this by a minute, so it holds none of the pipes.
(while sleep "${FYP_KEEP_EVERY:-60}" > /dev/null 2>&1; do keep; done) &
keeper=$!

asked=""
"$@" &
child=$!
trap 'asked=yes; kill -TERM "$child" 2> /dev/null' TERM
while true; do # a signal ends `wait` before the child has ended
    wait "$child"
    status=$?
    kill -0 "$child" 2> /dev/null || break
done
kill "$keeper" 2> /dev/null
keep

# train.py ends with 0 when it was asked to end, too; to GKE that would be a finished job, and no reason to restart.
word="failed with status $status"
if [ "$status" -eq 0 ]; then word=finished; fi
if [ -n "$asked" ] && { [ "$status" -eq 0 ] || [ "$status" -eq 143 ]; }; then word=stopped status=143; fi
echo "fyp:$word" > "runs/$run.status"
exit "$status"
