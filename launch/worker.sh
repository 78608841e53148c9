#!/usr/bin/env bash
# On a worker of a TPU slice; tpu_vm.sh and queued.sh copy it there and call it.
#
#   worker.sh install COMMIT   unpacks ~/qalign_jax-COMMIT.tar.gz and installs it
#   worker.sh start FLAGS..    starts qalign_jax.run, unless it runs; it outlives the connection
#   worker.sh status           one line: running, exit N, died, no run
#   worker.sh stop             ends it, after the checkpoint that it saves
#
# The images have Python 3.10, so uv brings its own. The log is ~/run.log.
set -euo pipefail

python=3.12 uv=0.5.0
base=$HOME/qalign_jax log=$HOME/run.log
export PATH=$HOME/.local/bin:$PATH

tell() { echo "worker $HOSTNAME: $*"; }

# The run holds the lock, and so do its children, as long as any of them lives.
alive() { ! (exec 9>"$base/run.lock" && flock --nonblock 9); }

install() {
  local commit=$1 archive=$HOME/qalign_jax-$1.tar.gz code=$base/$1 found
  exec 8>"$base/install.lock"
  flock 8
  if [ "$(readlink "$base/current")" = "$commit" ]; then
    tell "has $commit"
    return
  fi
  if alive; then
    tell "refused: a run of $(readlink "$base/current") lives"
    return
  fi
  rm -rf "$code" "$code.new"
  mkdir "$code.new"
  tar -xzf "$archive" -C "$code.new"
  mv -T "$code.new" "$code"
  found=$(uv --version 2>/dev/null | cut -d ' ' -f 2) || true
  if [ "$(printf '%s\n' "$uv" "${found:-0}" | sort -V | head -n 1)" != "$uv" ]; then
    python3 -m pip install --quiet --user --upgrade "uv>=$uv"
  fi
  [ -x "$base/venv/bin/python" ] || uv venv --quiet --python "$python" "$base/venv"
  uv pip install --quiet --python "$base/venv/bin/python" --constraint "$code/constraints.txt" \
    --editable "${code}[tpu]"
  command -v bwrap >/dev/null || bubblewrap || tell "no bubblewrap: recipes that run code refuse"
  ln -sfn "$commit" "$base/current.new"
  mv -T "$base/current.new" "$base/current"
  tell "installed $commit"
}

bubblewrap() {
  local apt=(sudo apt-get -qq -o DPkg::Lock::Timeout=300)
  "${apt[@]}" update && "${apt[@]}" install -y bubblewrap >/dev/null
}

start() {
  if [ ! -e "$base/current" ]; then
    tell "refused: nothing is installed"
    return
  fi
  if alive; then
    [ "$(<"$base/run.command")" != "$*" ] || { tell "runs already" && return; }
    tell "refused: another run lives: $(<"$base/run.command")"
    return
  fi
  rm -f "$base/run.exit" "$base/run.pid" "$base/run.stopped"
  setsid nohup bash "$base/worker.sh" supervise "$@" </dev/null >/dev/null 2>&1 &
  for _ in {1..100}; do
    [ ! -e "$base/run.pid" ] || { tell "started" && return; }
    sleep 0.1
  done
  tell "refused: the run did not start in 10 seconds"
}

# The run itself, in a session of its own.
supervise() {
  local status=0
  exec 9>"$base/run.lock"
  flock --nonblock 9 || return 0
  trap : TERM # goes to the run, whose exit status is kept
  cd "$base/current"
  echo "$*" >"$base/run.command"
  echo $$ >"$base/run.pid"
  echo "$(date -Is) $(readlink "$base/current"): qalign_jax.run $*" >>"$log"
  "$base/venv/bin/python" -m qalign_jax.run "$@" >>"$log" 2>&1 || status=$?
  echo "$(date -Is) exit $status" >>"$log"
  echo "$status" >"$base/run.exit.new"
  mv "$base/run.exit.new" "$base/run.exit"
}

status() {
  local code
  if alive; then
    tell "running"
  elif [ -e "$base/run.exit" ]; then
    code=$(<"$base/run.exit")
    if [ "$code" = 0 ]; then
      tell "exit 0"
    elif [ -e "$base/run.stopped" ]; then
      tell "exit $code, stopped"
    else
      tell "exit $code: $(last_words)"
    fi
  elif [ -e "$base/run.pid" ]; then
    tell "died"
  else
    tell "no run"
  fi
}

# The error that ended the last start, all of its lines as one, or the line before that of the exit.
last_words() {
  local lines words last first i
  mapfile -t lines < <(tail -n 50 "$log")
  unset 'lines[-1]' # that of the exit
  last=$((${#lines[@]} - 1))
  first=$last
  for i in "${!lines[@]}"; do
    case ${lines[i]} in
      *": qalign_jax.run "*) first=$last ;; # a start
      "error: "*) first=$i ;;
    esac
  done
  read -r -a words <<<"${lines[*]:first}"
  echo "${words[*]}"
}

stop() {
  local signal
  ! alive || touch "$base/run.stopped"
  for signal in TERM KILL; do
    if alive; then kill "-$signal" -- "-$(<"$base/run.pid")" || true; fi
    for _ in {1..300}; do
      alive || break
      sleep 0.2
    done
  done
  tell "stopped"
}

mkdir -p "$base"
"$@"
