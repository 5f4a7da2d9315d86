#!/usr/bin/env bash
# Runs on a host, called by install.sh: installs gcsfuse, which mounts the bucket, and the project in fyp_jax/.venv.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$HOME/.local/bin:$PATH" DEBIAN_FRONTEND=noninteractive

if ! command -v gcsfuse > /dev/null; then
    key=/usr/share/keyrings/cloud.google.asc
    curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" > /dev/null
    echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -c -s) main" |
        sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null
    # A new host updates itself first, and holds apt's lock for minutes.
    sudo apt-get -o DPkg::Lock::Timeout=600 -q update
    sudo -E apt-get -o DPkg::Lock::Timeout=600 -qy install gcsfuse
fi

# The image has Python 3.10, which is too old for this project; uv installs a newer one.
command -v uv > /dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
uv venv --quiet --allow-existing --python 3.12 .venv
uv pip install --quiet --python .venv/bin/python -e '.[tpu]'
.venv/bin/python train.py --help > /dev/null
echo "$(hostname): installed"
