# What the scripts of this folder share: options and slices.
# shellcheck shell=bash
# shellcheck disable=SC2034  # the scripts that source this file read what it sets

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

action='' name='' zone='' project='' slice='' config='' workdir='' image='' cluster=''
namespace=default service_account='' worker=0 node_count=1 max_failures=3 max_restarts=10 poll=30
dry_run=false spot=false privileged=false
request=()  # what `create` gets beside the slice
reach=()    # what ssh and scp need beside the worker
variables=() # NAME=VALUE of --env
flags=()    # of qalign_jax.run

mistake() {
  echo "error: $*" >&2
  exit 2
}
fail() {
  echo "error: $*" >&2
  exit 1
}
say() { echo "$(date +%H:%M:%S) $*" >&2; }

# The comment at the top of a script, as its help.
usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//p;}' "$0"; }

# Words as a shell reads them back.
quoted() {
  local word line='' option
  for word in "$@"; do
    option=''
    [[ ! $word =~ ^--[A-Za-z0-9_.-]+= ]] || option=${BASH_REMATCH[0]}
    word=${word#"$option"}
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]*$ && -n $option$word ]] || word=${word@Q}
    line+=" $option$word"
  done
  printf '%s\n' "${line# }"
}

# Runs a command; with --dry-run, prints it.
run() { if $dry_run; then quoted "$@"; else "$@"; fi; }

needs() {
  $dry_run || command -v "$1" >/dev/null || mistake "$1 is not on PATH; $2"
}

# --- options -------------------------------------------------------------------------------------

# parse "ACTIONS" "OPTIONS" ARGUMENTS..: both lists hold the words that this script knows.
parse() {
  local actions=" $1 " options=" ${2//$'\n'/ } " value
  shift 2
  action=${actions# } action=${action%% *} # the first is the default
  if [ $# -gt 0 ] && [[ $1 != -* ]]; then
    action=$1
    shift
  fi
  for value in "$@"; do
    [ "$value" = -- ] && break
    if [ "$value" = --help ] || [ "$value" = -h ]; then
      usage
      exit 0
    fi
  done
  [[ $actions == *" $action "* ]] || mistake "no action $action; there are$actions(see --help)"
  while [ $# -gt 0 ]; do
    value=${1#*=}
    case $1 in
      --) shift && flags+=("$@") && break ;;
      --config=* | --config.*=* | --workdir=* | --stages=* | --profile=* | --join_timeout_s=* | \
        --hang_timeout_s=*)
        flags+=("$1") ;;
      *)
        [[ $options == *" ${1%%=*} "* ]] ||
          mistake "no option $1 (see --help); other flags of qalign_jax.run stand behind --"
        take "$1" "$value" ;;
    esac
    shift
  done
  for value in ${flags[@]+"${flags[@]}"}; do
    case $value in
      --config=*) config=${value#*=} ;;
      --workdir=*) workdir=${value#*=} ;;
    esac
  done
  [[ $name =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    mistake "--name=$name: expected up to 40 lower-case letters, digits and hyphens"
}

# take OPTION VALUE: one option of this script.
take() {
  case $1 in
    --dry-run) dry_run=true ;;
    --spot) spot=true request+=(--spot) ;;
    --reserved) request+=(--reserved) ;;
    --internal-ips) request+=(--internal-ips) reach+=(--internal-ip) ;;
    --privileged) privileged=true ;;
    --*=?*)
      case ${1%%=*} in
        --name) name=$2 ;;
        --zone) zone=$2 ;;
        --project) project=$2 ;;
        --slice) slice=$2 ;;
        --image) image=$2 ;;
        --cluster) cluster=$2 ;;
        --namespace) namespace=$2 ;;
        --service-account) service_account=$2 ;;
        --valid-until-duration) request+=("$1") ;;
        --env)
          [[ $2 =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || mistake "$1: expected --env=NAME=VALUE"
          variables+=("$2") ;;
        --worker) worker=$(number "$1" "$2") ;;
        --node-count)
          node_count=$(number "$1" "$2")
          [ "$node_count" -gt 0 ] || mistake "$1: expected at least 1" ;;
        --max-failures) max_failures=$(number "$1" "$2") ;;
        --max-restarts) max_restarts=$(number "$1" "$2") ;;
        --poll) poll=$(number "$1" "$2") ;;
        *) mistake "$1: ${1%%=*} takes no value" ;;
      esac ;;
    *) mistake "$1 needs a value: ${1%%=*}=VALUE" ;;
  esac
}

number() {
  [[ $2 =~ ^[0-9]{1,6}$ ]] || mistake "$1: expected a number"
  echo $((10#$2))
}

# What a run on several hosts needs.
check_run() {
  [ -n "$config" ] || mistake "no recipe: --config=configs/math_cot.py:llama2_7b,v5e-16"
  [[ $workdir == gs://?* ]] ||
    mistake "--workdir=$workdir must be a gs:// path, which every host reaches"
}

# --- slices --------------------------------------------------------------------------------------

# The slice in a recipe's argument (file.py:preset,slice,words), "" where it names none.
slice_of() {
  local words word
  [[ $1 == *:* ]] || return 0
  IFS=, read -ra words <<<"${1#*:}"
  for word in "${words[@]:1}"; do
    [[ $word =~ ^[[:alpha:]]+$ ]] || echo "$word"
  done
}

# Reads --slice or the slice of --config: v5p-128 (v4 and v5p count cores, two a chip) or v5p:4x4x4.
# Sets accelerator, version, topology, chips (of a host), hosts and selector (of GKE's nodes).
read_slice() {
  local named chip shapes cores=1 shape size
  named=$(slice_of "$config")
  [[ $named != *$'\n'* ]] || mistake "--config=$config names several slices"
  [ -z "$named" ] || [ -z "$slice" ] || [ "$named" = "$slice" ] ||
    mistake "--slice=$slice is not the recipe's $named"
  slice=${slice:-$named}
  [ -n "$slice" ] ||
    mistake "no slice: name it in the recipe's argument (llama2_7b,v5e-16) or by --slice=v5e-16"
  chip=${slice%%[:-]*}
  accelerator=$chip shapes='2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8'
  case $chip in
    v4) version=tpu-ubuntu2204-base selector=tpu-v4-podslice cores=2 ;;
    v5p) version=v2-alpha-tpuv5 selector=tpu-v5p-slice cores=2 ;;
    v5e | v5litepod) version=v2-alpha-tpuv5-lite selector=tpu-v5-lite-podslice accelerator=v5litepod ;;
    v6e) version=v2-alpha-tpuv6e selector=tpu-v6e-slice ;;
    *) mistake "no slice $slice; the chips are v4, v5e (or v5litepod), v5p and v6e" ;;
  esac
  [ "$cores" = 2 ] || shapes='1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16'
  for shape in $shapes; do
    size=$((${shape//x/*}))
    [ "$slice" = "$chip:$shape" ] || [ "$slice" = "$chip-$((size * cores))" ] || continue
    topology=$shape accelerator+=-$((size * cores))
    # a host has four chips; slices of one host are the smallest, of up to eight v5e or v6e
    chips=4
    if [ "$size" -lt 4 ] || [ "$shape" = 2x4 ]; then chips=$size; fi
    hosts=$((size / chips))
    return
  done
  mistake "no slice $slice; $chip has ${shapes// /, }, which are named $chip:SHAPE or $chip-N by" \
    "their $([ "$cores" = 2 ] && echo 'cores, two a chip' || echo chips)"
}
