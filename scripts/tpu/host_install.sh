#!/usr/bin/env bash
# On a host, called by install.sh: gcsfuse, by which the bucket is a folder, and the project in fyp_jax/.venv.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$HOME/.local/bin:$PATH" DEBIAN_FRONTEND=noninteractive

if ! command -v gcsfuse > /dev/null; then
    key=/usr/share/keyrings/cloud.google.asc
    curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" > /dev/null
    echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -c -s) main" |
        sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null
    # A fresh host updates itself, and holds the lock for minutes.
    sudo apt-get -o DPkg::Lock::Timeout=600 -q update
    sudo -E apt-get -o DPkg::Lock::Timeout=600 -qy install gcsfuse
fi

# The image's Python is 3.10, too old for us; uv brings one of its own.
command -v uv > /dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
uv venv --quiet --allow-existing --python 3.12 .venv
uv pip install --quiet --python .venv/bin/python -e '.[tpu]'
.venv/bin/python train.py --help > /dev/null
echo "$(hostname): installed"
