#!/usr/bin/env bash
# Make the bundled model from nothing: train its stages on the synthetic world, which is rendered as training goes, and
# write the weights that the package ships. The same command resumes where it was stopped. It prints how long each part
# took. On a GPU or TPU, batches are larger, and scenes are rendered once and kept in memory.
#
#     scripts/train_mini.sh [OUT]          OUT is a new pipeline folder (default: runs/mini/model)
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/mini/model}
times=runs/mini/times.txt
mkdir -p runs/mini

# part NAME DONE COMMAND...: run the command unless the file DONE is there; add its seconds to the times, however it ends.
part() {
    local name=$1 done=$2 start=$SECONDS status=0
    shift 2
    [ ! -e "$done" ] || return 0
    "$@" || status=$?
    echo "$name $((SECONDS - start))" >> "$times"
    [ "$status" -eq 0 ] || exit "$status"
    [ -e "$done" ] || touch "$done"
}

# train CONFIG FOLDER [a.b=c...]: train a stage, whose folder gets a file `done` at its end.
train() {
    local config=$1 folder=runs/mini/$2
    shift 2
    part "$config" "$folder/done" python train.py --config "configs/mini/$config.yaml" "$@"
}

vae=() image=() pose=() motion=()
platform=$(python -c 'import fyp_jax.platforms as p; p.choose_platform(); import jax; print(jax.default_backend())')
if [ "$platform" != cpu ]; then
    workers=data.workers=$(($(nproc) > 2 ? $(nproc) - 2 : 1))
    vae=(data.batch_size=16 data.pool_size=60000 "$workers")
    image=(data.batch_size=64 data.pool_size=60000 "$workers")
    pose=("${image[@]}")
    motion=(data.batch_size=16 data.pool_size=7500 "$workers") # as many frames as the other pools have
fi

train autoencoder autoencoder "${vae[@]}"
train autoencoder_whole autoencoder_whole "${vae[@]}"
train image image "${image[@]}"
train stage1_pose pose "${pose[@]}"
train stage2_motion motion "${motion[@]}"
train decoder decoder "${vae[@]}"
segmenter=runs/mini/part_segmenter.safetensors
part part_segmenter "$segmenter" python scripts/train_part_segmenter.py --steps 900 --out "$segmenter"
python scripts/package_mini.py --image runs/mini/image/checkpoints --pose runs/mini/pose/checkpoints \
    --motion runs/mini/motion/checkpoints --decoder runs/mini/decoder/checkpoints --out "$out"

echo "minutes of each part:"
awk '{ seconds[$1] += $2 } END { for (name in seconds) printf "%7.1f  %s\n", seconds[name] / 60, name }' "$times" | sort -k2
echo "python sample.py pretrained=$out"
