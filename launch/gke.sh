#!/usr/bin/env bash
# Runs a recipe on GKE: launch/gke.sh [ACTION] --name=NAME --image=IMAGE --config=.. --workdir=gs://..
#
#   print   the manifest of the JobSet (default)   logs    follows the log of host 0
#   apply   the manifest                           status  of the JobSet and its pods
#   xpk     starts the run by xpk instead          delete  the JobSet
#
#   --image=IMAGE         built by launch/Dockerfile
#   --slice=v5e-16        the slice, where --config names none; v4-N and v5p-N count cores
#   --node-count=2        several slices, joined over DCN: give --config.mesh=data:2,..
#   --max-restarts=10     starts of the whole after failures and pre-emptions, but not after 2 or 74
#   --spot --namespace=default --service-account=NAME --env=NAME=VALUE
#   --privileged          for recipes that run code: bubblewrap makes namespaces and mounts
#   --cluster=C --zone=Z --project=P   of xpk
#   --dry-run             prints every command and runs none
#
# --config, --config.KEY, --workdir, --stages, --profile and what stands behind -- are flags of
# qalign_jax.run. The cluster has the JobSet API, and a node pool of the slice's shape.
#
#   launch/gke.sh apply --name=qalign --image=us-docker.pkg.dev/project/repo/qalign_jax --spot \
#       --config=configs/math_cot.py:llama2_7b,v5e-16 --workdir=gs://bucket/qalign7b ...
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# Text as YAML and JSON read it back, in which Kubernetes replaces no variable.
text() {
  local escaped=${1//\\/\\\\}
  escaped=${escaped//\$/\$\$}
  echo "\"${escaped//\"/\\\"}\""
}

# The exit status 2 is a user's mistake, 74 no space: no start of the whole would help. All others
# start it again: 1, 75 (another process is missing), 137 (killed), 143 (terminated).
manifest() {
  local pair flag
  cat <<EOF
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
  namespace: $namespace
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $max_restarts
    rules:
      - action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: slice
      replicas: $node_count
      template:
        spec:
          parallelism: $hosts
          completions: $hosts
          completionMode: Indexed
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes: {containerName: run, operator: In, values: [2, 74]}
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: 120
EOF
  [ -z "$service_account" ] || echo "              serviceAccountName: $service_account"
  cat <<EOF
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $selector
                cloud.google.com/gke-tpu-topology: $topology
EOF
  ! $spot || echo '                cloud.google.com/gke-spot: "true"'
  cat <<EOF
              containers:
                - name: run
                  image: $(text "$image")
                  resources:
                    limits: {google.com/tpu: $chips}
EOF
  ! $privileged || echo '                  securityContext: {privileged: true}'
  if [ "${#variables[@]}" -gt 0 ]; then
    echo '                  env:'
    for pair in "${variables[@]}"; do
      echo "                    - {name: ${pair%%=*}, value: $(text "${pair#*=}")}"
    done
  fi
  echo '                  args:'
  for flag in "${flags[@]}"; do echo "                    - $(text "$flag")"; done
}

by_xpk() {
  local pair command=(xpk workload create --cluster="$cluster" --workload="$name"
    --tpu-type="$accelerator" --num-slices="$node_count" --docker-image="$image"
    --max-restarts="$max_restarts" --restart-on-exit-codes="1,75"
    --command="$(quoted python -m qalign_jax.run "${flags[@]}")")
  [ -n "$cluster" ] || mistake "no cluster: --cluster=NAME"
  [[ ! $accelerator =~ ^v5litepod-[14]$ ]] || mistake "xpk knows no $accelerator; apply the manifest"
  needs xpk "install it: pip install xpk"
  [ -z "$zone" ] || command+=(--zone="$zone")
  [ -z "$project" ] || command+=(--project="$project")
  ! $spot || command+=(--spot)
  for pair in ${variables[@]+"${variables[@]}"}; do command+=(--env="$pair"); done
  run "${command[@]}"
}

parse 'print apply xpk logs status delete' \
  '--name --image --slice --node-count --max-restarts --spot --namespace --service-account --env
   --privileged --cluster --zone --project --dry-run' "$@"
case $action in
  print | apply | xpk)
    check_run
    [[ ! "$image ${flags[*]} ${variables[*]-}" =~ [[:cntrl:]] ]] ||
      mistake "a line break or another control character in the image, a flag or a variable"
    [ -n "$image" ] || mistake "no image: --image=us-docker.pkg.dev/project/repo/qalign_jax"
    read_slice ;;
esac
case $action in
  print)
    manifest
    exit ;;
  xpk)
    by_xpk
    exit ;;
  *) needs kubectl "install it: gcloud components install kubectl" ;;
esac
pods=(--namespace="$namespace" --selector="jobset.sigs.k8s.io/jobset-name=$name")
case $action in
  apply)
    if $dry_run; then
      printf "kubectl apply --filename=- <<'EOF'\n%s\nEOF\n" "$(manifest)"
    else
      manifest | kubectl apply --filename=-
    fi ;;
  logs)
    pods[1]+=,batch.kubernetes.io/job-completion-index=0
    run kubectl logs --follow --tail=50 "${pods[@]}" ;;
  status)
    run kubectl get jobset "$name" --namespace="$namespace"
    run kubectl get pods "${pods[@]}" ;;
  delete) run kubectl delete jobset "$name" --namespace="$namespace" --ignore-not-found ;;
esac
