#!/usr/bin/env bash
# Copies the commit that is checked out here to all hosts and installs it there. Run it again to replace it.
#
#     scripts/tpu/install.sh --project P --zone Z --name N
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
settings "project zone name" "$@"
[ ${#rest[@]} -eq 0 ] || fail "unexpected argument ${rest[0]}; --help lists the flags"
needs gcloud https://cloud.google.com/sdk/docs/install
git -C "$root" diff --quiet HEAD || echo "install.sh: uncommitted changes are not copied" >&2

archive=${TMPDIR:-/tmp}/fyp_jax-$NAME.tar.gz
run git -C "$root" archive --output="$archive" HEAD
gcloud_tpu tpu-vm scp "$archive" "$NAME:fyp_jax.tar.gz" --worker=all
on_hosts all 'mkdir -p fyp_jax && tar -xzf fyp_jax.tar.gz -C fyp_jax && fyp_jax/scripts/tpu/host_install.sh'
