#!/usr/bin/env bash
# Runs a recipe on a TPU VM slice: launch/tpu_vm.sh [ACTION] --name=NAME --zone=ZONE OPTION.. FLAG..
#
#   up      create, install and run; again after every pre-emption, until the run is done (default)
#   create  the slice, waiting for capacity        logs    follows a worker's log (--worker=0)
#   install the last commit, on every worker       stop    ends the run, on every worker
#   run     on every worker, and watch it          status  of the slice and of every worker
#   delete  the slice
#
#   --slice=v5e-16        the slice, where --config names none; v4-N and v5p-N count cores
#   --project=P --spot --reserved --internal-ips   as in gcloud compute tpus tpu-vm create
#   --env=NAME=VALUE      in the run's environment
#   --max-failures=3      starts again after failures in a row; pre-emptions do not count
#   --poll=30             seconds between two looks
#   --dry-run             prints every command and runs none
#
# --config, --config.KEY, --workdir, --stages, --profile and what stands behind -- are flags of
# qalign_jax.run. Every action can be repeated; the run goes on when this script ends. Exit status:
# 0 done, 2 a mistake in the command, else 1.
#
#   launch/tpu_vm.sh --name=qalign --zone=us-west4-a --spot --workdir=gs://bucket/qalign7b \
#       --config=configs/math_cot.py:llama2_7b,v5e-16 --config.base=gs://bucket/Llama-2-7b-hf ...
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=tpus.sh
source "$(dirname "${BASH_SOURCE[0]}")/tpus.sh"

kind=tpu-vm ready=READY state_field=state all=(--worker=all) one=() removal=(--quiet)

create_it() {
  tpu create "$name" --accelerator-type="$accelerator" --version="$version" ${request[@]+"${request[@]}"}
}

main 'up create install run logs status stop delete' \
  '--name --zone --project --slice --spot --reserved --internal-ips --env --worker --max-failures
   --poll --dry-run' "$@"
