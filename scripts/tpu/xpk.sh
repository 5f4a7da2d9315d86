#!/usr/bin/env bash
# Trains on GKE with xpk (pip install xpk): creates a cluster NAME, attaches the bucket, builds an image, starts runs.
#
#     scripts/tpu/xpk.sh cluster --project P --zone Z --name N --type v5litepod-16 [--spot]   create the cluster
#     scripts/tpu/xpk.sh bucket  --project P --zone Z --name N --bucket B                     mount it at /mnt/bucket
#     scripts/tpu/xpk.sh image   --image REGION-docker.pkg.dev/P/REPOSITORY/fyp_jax:TAG       build and push it
#     scripts/tpu/xpk.sh start   --project P --zone Z --name N --type T --image I --bucket B --run R \
#         --config configs/sd14/stage2_motion.yaml data.path=/mnt/bucket/records/captioned_videos [a.b=c ...]
#     scripts/tpu/xpk.sh list    --project P --zone Z --name N                                list runs and states
#     scripts/tpu/xpk.sh stop    --project P --zone Z --name N --run R                        save and stop a run
#     scripts/tpu/xpk.sh delete  --project P --zone Z --name N                                delete; xpk asks first
#
# GKE restarts a run whose hosts were preempted, up to 50 times. copy_out.sh works as for a pod.
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
    *) fail "give one of cluster, bucket, image, start, list, stop or delete; see --help" ;;
esac
[ "$verb" = image ] || needs xpk "pip install xpk"
[ "$verb" != image ] || needs docker https://docs.docker.com/engine/install
workload=${RUN:-} && workload=${workload//_/-} # Kubernetes allows no _ in names

xpk_on() {
    run xpk "$@" --cluster="$NAME" --project="$PROJECT" --zone="$ZONE"
}

case $verb in
    cluster)
        if [ -n "$SPOT" ]; then kind=--spot; else kind=--on-demand; fi
        xpk_on cluster create --tpu-type="$TYPE" --num-slices=1 "$kind" --enable-gcsfuse-csi-driver
        ;;
    bucket) # xpk requires a size; a bucket has none
        xpk_on storage attach fyp-bucket --type=gcsfuse --bucket="$BUCKET" --mount-point=/mnt/bucket \
            --readonly=false --auto-mount=false --size=1
        ;;
    image)
        run docker build --file "$tpu/Dockerfile" --tag "$IMAGE" "$root"
        run docker push "$IMAGE"
        ;;
    start)
        [ -f "$root/$CONFIG" ] || fail "$CONFIG: no such config file"
        # exec, so that SIGTERM reaches host_run.sh and not a shell around it
        xpk_on workload create --workload="$workload" --tpu-type="$TYPE" --num-slices=1 --docker-image="$IMAGE" \
            --storage=fyp-bucket --max-restarts=50 \
            --termination-grace-period-seconds=300 \
            --command="exec $(quote /fyp_jax/scripts/tpu/host_run.sh "$RUN" "${train[@]}")"
        ;;
    list) xpk_on workload list ;;
    stop) xpk_on workload delete --workload="$workload" ;;
    delete) xpk_on cluster delete ;;
esac
