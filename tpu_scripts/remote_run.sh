#!/usr/bin/env bash
# Runs one job on this worker, independent of the ssh connection that starts it.
#
#   remote_run.sh start  RUN_DIR [--token=T] [--logs=gs://FOLDER] -- COMMAND ...
#   remote_run.sh status RUN_DIR
#   remote_run.sh stop   RUN_DIR [SECONDS]      SIGTERM; SIGKILL after SECONDS (120)
#
# Each prints one line 'LMRUN HOST RUN STATE CODE' with STATE one of
#   ABSENT   this worker never ran it       RUNNING  it runs
#   EXITED   it ended with code CODE        LOST     it ended without a code: killed, or a reboot
#   HELD     another run, named by CODE, holds this worker
#
# A worker has one lock for all its runs, and descriptor 9 holds it. Supervisor and job inherit the
# descriptor, so that the lock is free only after both have ended. Pid files could be wrong, and are
# not used. gcloud may send a command twice, since it restarts ssh when the link drops. So a second
# start of a running run has no effect, and neither has a start with a token that was used before.
set -u

run_dir=${2:?usage: remote_run.sh start|status|stop RUN_DIR}
mkdir -p "$run_dir" || exit 1
run_dir=$(cd "$run_dir" && pwd -P)
run=$(basename "$run_dir")
runs=$(dirname "$run_dir")
lock=$runs/.lock

say() { echo "LMRUN $(hostname) $run $1 ${2:--}"; }

# The processes that hold the lock.
holders() {
  find /proc/[0-9]*/fd/9 -maxdepth 0 -lname "$lock" 2>/dev/null | cut -d / -f 3
}

supervisor() { tr '\0' ' ' 2>/dev/null <"/proc/$1/cmdline" | grep -q 'remote_run.sh supervise '; }

# Prints those of the given processes that are the job itself, without supervisors and without
# children of the others. A trainer saves on SIGTERM, and needs its own workers until it has saved.
jobs_of() {
  local pid parent list=" $* "
  for pid in "$@"; do
    parent=$(awk '/^PPid:/ {print $2}' "/proc/$pid/status" 2>/dev/null)
    case $list in *" $parent "*) supervisor "$parent" || continue ;; esac
    supervisor "$pid" || echo "$pid"
  done
}

# Attempts to take the lock use descriptor 8, so that they never look like its owner.
alone() { flock --wait 60 8 || { echo "remote_run.sh: $runs/.start is held" >&2 && exit 1; }; }
locked() { ! flock --nonblock "$lock" true; }

state() {
  local owner
  if locked; then
    owner=$(cat "$runs/.owner" 2>/dev/null)
    if [ "$owner" = "$run" ]; then say RUNNING; else say HELD "${owner:-unknown}"; fi
  elif [ -s "$run_dir/code" ]; then
    say EXITED "$(cat "$run_dir/code")"
  elif [ -e "$run_dir/started" ]; then
    say LOST
  else
    say ABSENT
  fi
}

start() {
  local logs='' token=''
  shift 2
  case ${1:-} in --token=*) token=${1#--token=} && shift ;; esac
  case ${1:-} in --logs=*) logs=${1#--logs=} && shift ;; esac
  if [ "${1:-}" != -- ] || [ $# -lt 2 ]; then
    echo 'usage: remote_run.sh start RUN_DIR [--token=T] [--logs=gs://FOLDER] -- COMMAND ...' >&2
    exit 2
  fi
  shift
  alone
  exec 9>>"$lock"
  if [ -n "$token" ] && [ "$(cat "$run_dir/token" 2>/dev/null)" = "$token" ]; then
    : # the same command was sent twice
  elif flock --nonblock 9; then
    echo "$token" >"$run_dir/token"
    rm -f "$run_dir/code"
    echo "$run" >"$runs/.owner"
    date -u +%FT%TZ >>"$run_dir/started"
    setsid bash "$0" supervise "$run_dir" "$logs" "$@" 8>&- </dev/null >>"$run_dir/log" 2>&1 &
  fi
  exec 9>&-
  state
}

# Runs the job, passes SIGTERM on to it, and writes its code last.
supervise() {
  local logs=$3 code interrupted job copier=''
  shift 3
  printf '== %s starts' "$(date -u +%FT%TZ)"
  printf ' %q' "$@"
  echo " in $PWD"
  cat .source 2>/dev/null
  "$@" &
  job=$!
  # At a shutdown the job receives SIGTERM too, and the supervisor must live to record its code.
  trap 'interrupted=1' TERM
  if [ -n "$logs" ]; then
    # The disk of a preempted machine is lost, so that the log is also copied to the bucket.
    (trap - TERM && while sleep 60; do copy "$logs"; done) 9>&- &
    copier=$!
  fi
  while true; do
    interrupted=0
    wait "$job"
    code=$?
    [ "$interrupted" = 1 ] || break
  done
  echo "== $(date -u +%FT%TZ) exits $code"
  echo "$code" >"$run_dir/code.new" && mv "$run_dir/code.new" "$run_dir/code"
  exec 9>&-
  if [ -n "$copier" ]; then
    kill "$copier" 2>/dev/null
    copy "$logs"
  fi
}

copy() { timeout 120 gcloud storage cp --quiet "$run_dir/log" "$1/$(hostname).log" >/dev/null 2>&1; }

stop() {
  local grace=${3:-120} sent=' ' waited=0 pid pids
  alone
  if locked && [ "$(cat "$runs/.owner" 2>/dev/null)" = "$run" ]; then
    while locked; do
      flock --unlock 8
      mapfile -t pids < <(holders)
      for pid in $(jobs_of "${pids[@]}"); do
        case $sent in *" $pid "*) continue ;; esac
        sent="$sent$pid "
        kill -TERM "$pid" 2>/dev/null
      done
      if ((waited >= grace * 10)); then
        for pid in "${pids[@]}"; do
          # The supervisor has ten seconds to record the code.
          if ((waited >= grace * 10 + 100)) || ! supervisor "$pid"; then
            kill -KILL "$pid" 2>/dev/null
          fi
        done
      fi
      sleep 0.1
      waited=$((waited + 1))
      alone
    done
  fi
  state
}

case ${1:-} in
start | status | stop) exec 8>>"$runs/.start" ;;
esac
case ${1:-} in
start) start "$@" ;;
status) alone && state ;;
stop) stop "$@" ;;
supervise) supervise "$@" ;;
*)
  echo 'usage: remote_run.sh start|status|stop RUN_DIR' >&2
  exit 2
  ;;
esac
