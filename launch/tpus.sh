# The life of a run on TPU VMs, as tpu_vm.sh and queued.sh share it.
# shellcheck shell=bash source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# Set by tpu_vm.sh and queued.sh: gcloud's noun, the field of its state and the one in which ssh
# works, ssh's flags for all workers and for those of one node, and flags of delete.
kind='' state_field='' ready='' all=() one=() removal=()
tries=5 # of ssh and scp

# tpu VERB ARGUMENTS..: one gcloud command on the node or the queued resource.
tpu() {
  local place=(--zone="$zone")
  [ -z "$project" ] || place+=(--project="$project")
  run gcloud compute tpus "$kind" "$@" "${place[@]}"
}

# ssh_to WORKERS.. COMMAND
ssh_to() { tpu ssh "$name" "${@:1:$#-1}" ${reach[@]+"${reach[@]}"} --command="${!#}"; }

# pause N: before the Nth repetition; doubles from --poll seconds up to ten minutes.
pause() {
  local seconds=$((poll << ($1 < 6 ? $1 - 1 : 5)))
  sleep $((seconds < 600 ? seconds : 600))
}

# What gcloud's error text means: capacity, quota, exists, absent or other.
meaning() {
  case $1 in
    *"no more capacity in the zone"* | *"Insufficient reserved capacity"*) echo capacity ;;
    *"Quota limit"*exceeded*) echo quota ;;
    *"already exists"* | *ALREADY_EXISTS*) echo exists ;;
    *NOT_FOUND* | *"not found"*) echo absent ;;
    *) echo other ;;
  esac
}

no_quota() {
  fail "the quota does not allow $accelerator in $zone; ask for more, or take another zone or" \
    "slice. Asking again would not help"
}

# Sets state to that of the node or the queued resource, ABSENT where there is none.
look() {
  local try errors
  if $dry_run; then
    tpu describe "$name" --format="value($state_field)"
    state=ABSENT
    return
  fi
  errors=$(mktemp)
  for try in 1 2 3; do
    if state=$(tpu describe "$name" --format="value($state_field)" 2>"$errors"); then
      rm "$errors"
      return
    fi
    if [ "$(meaning "$(<"$errors")")" = absent ]; then
      rm "$errors"
      state=ABSENT
      return
    fi
    pause "$try"
  done
  fail "gcloud does not tell the state of $name: $(<"$errors")"
}

# Deletes it; one that is gone is fine.
remove() {
  local said
  if $dry_run; then
    tpu delete "$name" "${removal[@]}"
  elif said=$(tpu delete "$name" "${removal[@]}" 2>&1); then
    say "$name is deleted"
  elif [ "$(meaning "$said")" = absent ]; then
    say "there is no $name in $zone"
  else
    fail "gcloud did not delete $name: $said"
  fi
}

# Waits until it is there and ready, and asks for it where there is none or it was pre-empted.
create() {
  local said seen='' waits=0 failed=0
  while true; do
    look
    case $state in
      "$ready")
        say "$name is $state"
        return ;;
      ABSENT)
        if $dry_run; then
          create_it
          return
        fi
        say "asking for $name: $accelerator ($topology), $hosts host(s), $version"
        if said=$(create_it 2>&1); then continue; fi
        case $(meaning "$said") in
          exists) ;;
          capacity) say "no capacity for $accelerator in $zone; asking again later" ;;
          quota)
            echo "$said" >&2
            no_quota ;;
          *) fail "gcloud did not create $name: $said" ;;
        esac ;;
      PREEMPTED | TERMINATED | SUSPENDED)
        say "$name is $state: it is deleted and asked for anew"
        remove
        continue ;;
      FAILED) # keeps its quota until it is deleted
        said=$(tpu describe "$name" --format='value(state.failedData.error.message)' 2>&1) || true
        say "$name is FAILED: ${said:-no reason given}; it is deleted"
        remove
        case $(meaning "$said") in
          capacity) ;;
          quota) no_quota ;;
          *) [ $((failed += 1)) -lt "$max_failures" ] || fail "$name FAILED $failed times: $said" ;;
        esac ;;
      STOPPED | HIDDEN | HIDING | STOPPING)
        fail "$name is $state; start it with gcloud, or delete it: $0 delete --name=$name --zone=$zone" ;;
      *)
        [ "$state" = "$seen" ] || say "$name is $state; waiting"
        seen=$state
        sleep "$poll"
        continue ;;
    esac
    pause $((waits += 1))
  done
}

# everywhere COMMAND: runs it on every worker and leaves what they print in `answers`. Where ssh
# fails it tries again, and then names the workers that do not answer.
# Returns 75 where the node is not ready any more.
everywhere() {
  local try
  answers=''
  if $dry_run; then
    ssh_to "${all[@]}" "$1"
    return 0
  fi
  for ((try = 1; try <= tries; try++)); do
    if answers=$(ssh_to "${all[@]}" "$1"); then return 0; fi
    look
    [ "$state" = "$ready" ] || return 75
    [ "$try" = "$tries" ] || pause "$try"
  done
  fail "$(unreachable) in $tries tries: $1${answers:+$'\n'$answers}"
}

# Names the workers that do not answer.
unreachable() {
  local node index silent=''
  for ((node = 0; node < node_count; node++)); do
    for ((index = 0; index < ${hosts:-1}; index++)); do
      ssh_to ${one[@]+"${one[@]/NODE/$node}"} --worker="$index" true >/dev/null 2>&1 ||
        silent+=" $([ "$node_count" = 1 ] || echo "$node/")$index"
    done
  done
  if [ -n "$silent" ]; then
    echo "no ssh to worker$silent of $name"
  else
    echo "a command failed on $name"
  fi
}

# Copies the last commit to every worker and installs it there. Returns 75 as `everywhere`.
install() {
  local commit archive try
  commit=$(git -C "$root" rev-parse --verify --quiet HEAD) ||
    mistake "$root is no git checkout with a commit; the workers get the last commit"
  [ -z "$(git -C "$root" status --porcelain)" ] ||
    say "warning: uncommitted changes stay here; the workers run the last commit ${commit:0:12}"
  commit=${commit:0:12}
  archive=${TMPDIR:-/tmp}/qalign_jax-$commit.tar.gz
  run git -C "$root" archive --format=tar.gz --output="$archive" HEAD ||
    fail "git did not write $archive"
  for ((try = 1; try <= tries; try++)); do
    if tpu scp "$archive" "$name:" "${all[@]}" ${reach[@]+"${reach[@]}"}; then break; fi
    look
    [ "$state" = "$ready" ] || return 75
    [ "$try" -lt "$tries" ] || fail "$(unreachable): the code was not copied in $tries tries"
    pause "$try"
  done
  everywhere "mkdir -p qalign_jax && \
tar -xzOf qalign_jax-$commit.tar.gz launch/worker.sh > qalign_jax/worker.new && \
mv qalign_jax/worker.new qalign_jax/worker.sh && bash qalign_jax/worker.sh install $commit" ||
    return $?
  accepted
}

accepted() {
  [[ $answers != *": refused"* ]] ||
    fail "$answers"$'\n'"a run that lives is ended by: $0 stop --name=$name --zone=$zone"
}

# Starts the run on every worker; one that lives goes on. Returns 75 as `everywhere`.
start() {
  local command=(bash qalign_jax/worker.sh start "${flags[@]}")
  [ "${#variables[@]}" = 0 ] || command=(env "${variables[@]}" "${command[@]}")
  everywhere "$(quoted "${command[@]}")" || return $?
  accepted
}

# Looks at the run until it has ended; sets outcome: 0 all is done, 2 a user's mistake, 75 the node
# is gone, else 1. Fails where the run was stopped, or ended with 74: no start again would help.
watch() {
  local total=$((hosts * node_count)) looks=0 before='' ended running
  while true; do
    outcome=0
    everywhere 'bash qalign_jax/worker.sh status' || outcome=$?
    if [ "$outcome" = 75 ] || $dry_run; then return; fi
    running=$(grep -c ': running' <<<"$answers") || true
    ended=$(grep -c ': exit 0' <<<"$answers") || true
    if [ "$ended" -ge "$total" ]; then return; fi
    if [ "$running$ended" != "$before" ]; then
      say "$running of $total workers run; logs: $0 logs --name=$name --zone=$zone"
      before=$running$ended
    fi
    if [ $((running + ended)) -lt "$total" ]; then
      # the others end by themselves, and say why, before the judgement
      if [ "$running" = 0 ] || [ $((looks += 1)) = 3 ]; then
        grep ': ' <<<"$answers" >&2 || true
        outcome=1
        [[ $answers != *": exit 2:"* ]] || outcome=2
        [[ $answers != *", stopped"* ]] || fail "the run was stopped; $0 up goes on with it"
        [[ $answers != *": exit 74:"* ]] ||
          fail "the run cannot write; when it can again, $0 up goes on with it"
        return
      fi
    fi
    sleep "$poll"
  done
}

# Everything, again after every pre-emption and, a few times, after failures.
up() {
  local failures=0 begun
  trap 'say "the run goes on without this script; the same command watches it again"; exit 130' INT
  while true; do
    create
    outcome=0 begun=$SECONDS
    { install && start; } || outcome=$?
    [ "$outcome" != 0 ] || watch
    case $outcome in
      0)
        if $dry_run; then
          say "a dry run; after a pre-emption it would delete $name and do all of this again"
          return
        fi
        say "the run is done: $workdir; $name is still there: $0 delete --name=$name --zone=$zone"
        return ;;
      2) mistake "the run ends with status 2, a mistake in the command or its data; see above" ;;
      75)
        say "$name is $state: pre-empted; the run is resumed on a new one"
        continue ;;
    esac
    [ $((SECONDS - begun)) -lt 3600 ] || failures=0
    [ $((failures += 1)) -le "$max_failures" ] ||
      fail "the run failed $failures times in a row; see the logs: $0 logs --name=$name --zone=$zone"
    say "the run failed; start $((failures + 1)) of $((max_failures + 1))"
    everywhere 'bash qalign_jax/worker.sh stop' || true
    pause "$failures"
  done
}

# main ACTIONS OPTIONS ARGUMENTS..: of tpu_vm.sh and queued.sh.
main() {
  parse "$@"
  [ -n "$zone" ] || mistake "no zone: --zone=us-west4-a"
  case $action in up | run) check_run ;; esac
  case $action in up | run | create) read_slice ;; esac
  needs gcloud "install the Google Cloud CLI"
  outcome=0
  case $action in
    up | create) "$action" ;;
    install) install || fail "$name is $state" ;;
    run)
      start || fail "$name is $state"
      watch
      [ "$outcome" != 75 ] || fail "$name is $state: pre-empted; $0 up makes it anew"
      exit "$outcome" ;;
    status)
      look
      say "$name is $state"
      if [ "$state" = "$ready" ] || $dry_run; then
        everywhere 'bash qalign_jax/worker.sh status' && echo "$answers"
      fi ;;
    logs)
      ssh_to ${one[@]+"${one[@]/NODE/0}"} --worker="$worker" 'tail -n 50 -F run.log' ;;
    stop) everywhere 'bash qalign_jax/worker.sh stop' && echo "$answers" ;;
    delete) remove ;;
  esac
}
