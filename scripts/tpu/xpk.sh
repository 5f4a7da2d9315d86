#!/usr/bin/env bash
# The same on GKE, by xpk (pip install xpk): a cluster NAME, the bucket as its storage, an image, and runs.
#
#     scripts/tpu/xpk.sh cluster --project P --zone Z --name N --type v5litepod-16 [--spot]   make the cluster
#     scripts/tpu/xpk.sh bucket  --project P --zone Z --name N --bucket B                     its /mnt/bucket
#     scripts/tpu/xpk.sh image   --image REGION-docker.pkg.dev/P/REPOSITORY/fyp_jax:TAG       build and push it
#     scripts/tpu/xpk.sh start   --project P --zone Z --name N --type T --image I --bucket B --run R \
#         --config configs/sd14/stage2_motion.yaml data.path=/mnt/bucket/records/captioned_videos [a.b=c ...]
#     scripts/tpu/xpk.sh list    --project P --zone Z --name N                                runs, and how they are
#     scripts/tpu/xpk.sh stop    --project P --zone Z --name N --run R                        checkpoint, and end
#     scripts/tpu/xpk.sh delete  --project P --zone Z --name N                                the cluster; xpk asks
#
# GKE starts a run again when its hosts were taken, up to 50 times. copy_out.sh is the same as for a pod.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
verb=${1:-}
[ $# -eq 0 ] || shift
case $verb in
    cluster) settings "project zone name type spot?" "$@" ;;
    bucket) settings "project zone name bucket" "$@" ;;
    image) settings "image" "$@" ;;
    start) settings "project zone name type image bucket run config" "$@" ;;
    list | delete) settings "project zone name" "$@" ;;
    stop) settings "project zone name run" "$@" ;;
    --help) help && exit 0 ;;
    *) fail "what to do? cluster, bucket, image, start, list, stop or delete; see --help" ;;
esac
[ "$verb" = image ] || needs xpk "pip install xpk"
[ "$verb" != image ] || needs docker https://docs.docker.com/engine/install
workload=${RUN:-} && workload=${workload//_/-} # a name in Kubernetes has no _

xpk_on() {
    run xpk "$@" --cluster="$NAME" --project="$PROJECT" --zone="$ZONE"
}

case $verb in
    cluster)
        if [ -n "$SPOT" ]; then kind=--spot; else kind=--on-demand; fi
        xpk_on cluster create --tpu-type="$TYPE" --num-slices=1 "$kind" --enable-gcsfuse-csi-driver
        ;;
    bucket) # the size is a formality: a bucket has none
        xpk_on storage attach fyp-bucket --type=gcsfuse --bucket="$BUCKET" --mount-point=/mnt/bucket \
            --readonly=false --auto-mount=false --size=1
        ;;
    image)
        run docker build --file "$tpu/Dockerfile" --tag "$IMAGE" "$root"
        run docker push "$IMAGE"
        ;;
    start)
        [ -f "$root/$CONFIG" ] || fail "$CONFIG: no such config file"
        # exec: SIGTERM is for host_run.sh, and not for a shell around it
        xpk_on workload create --workload="$workload" --tpu-type="$TYPE" --num-slices=1 --docker-image="$IMAGE" \
            --storage=fyp-bucket --max-restarts=50 \
            --termination-grace-period-seconds=300 \
            --command="exec $(quote /fyp_jax/scripts/tpu/host_run.sh "$RUN" "${train[@]}")"
        ;;
    list) xpk_on workload list ;;
    stop) xpk_on workload delete --workload="$workload" ;;
    delete) xpk_on cluster delete ;;
esac
