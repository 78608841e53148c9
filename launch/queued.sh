#!/usr/bin/env bash
# Runs a recipe on queued TPU slices: launch/queued.sh [ACTION] --name=NAME --zone=ZONE OPTION.. FLAG
#
#   up      create, install and run; again after every pre-emption, until the run is done (default)
#   create  the request, waiting until it is ACTIVE  logs    follows a worker's log (--worker=0)
#   install the last commit, on every worker         stop    ends the run, on every worker
#   run     on every worker, and watch it            status  of the request and of every worker
#   delete  the request and its slices
#
#   --slice=v5e-16        the slice, where --config names none; v4-N and v5p-N count cores
#   --node-count=2        several slices, joined over DCN: give --config.mesh=data:2,..
#   --project=P --spot --reserved --internal-ips --valid-until-duration=6h   as in gcloud compute
#                         tpus queued-resources create
#   --env=NAME=VALUE      in the run's environment
#   --max-failures=3      starts again after failures in a row; pre-emptions do not count
#   --poll=30             seconds between two looks
#   --dry-run             prints every command and runs none
#
# --config, --config.KEY, --workdir, --stages, --profile and what stands behind -- are flags of
# qalign_jax.run. Every action can be repeated; the run goes on when this script ends. Exit status:
# 0 done, 2 a mistake in the command, else 1.
#
#   launch/queued.sh --name=qalign --zone=us-east5-a --spot --workdir=gs://bucket/qalign70b \
#       --config=configs/math_cot.py:llama2_70b,v5p-128 --config.base=gs://bucket/Llama-2-70b-hf ...
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=tpus.sh
source "$(dirname "${BASH_SOURCE[0]}")/tpus.sh"

kind=queued-resources ready=ACTIVE state_field=state.state
all=(--node=all --worker=all) one=(--node=NODE) removal=(--force --quiet)

create_it() {
  local nodes=(--node-id="$name")
  [ "$node_count" = 1 ] || nodes=(--node-count="$node_count")
  tpu create "$name" "${nodes[@]}" --accelerator-type="$accelerator" --runtime-version="$version" \
    ${request[@]+"${request[@]}"}
}

main 'up create install run logs status stop delete' \
  '--name --zone --project --slice --node-count --spot --reserved --internal-ips
   --valid-until-duration --env --worker --max-failures --poll --dry-run' "$@"
