#!/usr/bin/env bash
# Make the bundled model from nothing: render the synthetic world, make records, train four stages, write the weights that
# the package ships. The same command resumes where it was stopped. docs/synthetic_world.md says how long it took.
#
#     scripts/train_mini.sh [OUT]          OUT is a new pipeline folder (default: runs/mini/model)
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/mini/model}

[ -f runs/mini/rendered/videos/metadata.csv ] || python scripts/render_synthetic.py --out runs/mini/rendered
python scripts/prepare_data.py images --source runs/mini/rendered/images --out runs/mini/records
python scripts/prepare_data.py videos --source runs/mini/rendered/videos --out runs/mini/records
for run in autoencoder image stage1_pose stage2_motion; do
    python train.py --config "configs/mini/$run.yaml"
done
python scripts/package_mini.py --image runs/mini/image/checkpoints --pose runs/mini/pose/checkpoints \
    --motion runs/mini/motion/checkpoints --out "$out"
echo "python sample.py pretrained=$out"
