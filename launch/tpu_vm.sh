#!/usr/bin/env bash
# Runs a recipe on every host of a TPU VM slice. After a preemption, the same command resumes the
# run: finished stages are skipped, an interrupted stage continues.
#
#   launch/tpu_vm.sh NAME ZONE --config=configs/math_cot.py:llama2_7b --workdir=gs://bucket/qalign7b ...
#
# NAME and ZONE are those of the slice (gcloud compute tpus tpu-vm list); everything after them goes
# to qalign_jax.run. DRY_RUN=1 prints the commands instead of running them.
set -euo pipefail

if [ $# -lt 3 ]; then
  sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
name=$1 zone=$2
shift 2
case " $* " in
  *" --workdir=gs://"*) ;;
  *) echo "error: --workdir must be a gs:// path that every host reaches" >&2; exit 2 ;;
esac

run() { if [ -n "${DRY_RUN:-}" ]; then printf '%q ' "$@"; echo; else "$@"; fi; }

root=$(cd "$(dirname "$0")/.." && pwd)
archive=$(mktemp -d)/qalign_jax.tar.gz
trap 'rm -rf "$(dirname "$archive")"' EXIT
git -C "$root" archive --format=tar.gz --output="$archive" HEAD

run gcloud compute tpus tpu-vm scp "$archive" "$name:qalign_jax.tar.gz" --zone="$zone" --worker=all
arguments=$(printf '%q ' "$@")
# all hosts at once: gcloud would start those after the 64th when the first ones have ended
run gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --batch-size=all --command="
  set -eo pipefail
  mkdir -p qalign_jax && tar -xzf qalign_jax.tar.gz -C qalign_jax && cd qalign_jax
  [ -d ../venv ] || python3 -m venv ../venv
  . ../venv/bin/activate
  pip install --quiet -e '.[tpu]'
  python -m qalign_jax.run $arguments 2>&1 | tee -a ../run.log"
