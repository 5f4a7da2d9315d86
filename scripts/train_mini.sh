#!/usr/bin/env bash
# The mini model from nothing: draws the mini world, makes records, trains four stages, writes the weights that the
# package ships. Started again, it goes on where it was stopped. README, "The mini world", says how long it took.
#
#     scripts/train_mini.sh [OUT]          OUT, a new pipeline folder, is runs/mini/model by default
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/mini/model}

[ -f runs/mini/drawn/videos/metadata.csv ] || python scripts/draw_mini_world.py --out runs/mini/drawn
python scripts/prepare_data.py images --source runs/mini/drawn/images --out runs/mini/records
python scripts/prepare_data.py videos --source runs/mini/drawn/videos --out runs/mini/records
for run in autoencoder image stage1_pose stage2_motion; do
    python train.py --config "configs/mini/$run.yaml"
done
python scripts/ship_mini.py --image runs/mini/image/checkpoints --pose runs/mini/pose/checkpoints \
    --motion runs/mini/motion/checkpoints --out "$out"
echo "python sample.py pretrained=$out"
