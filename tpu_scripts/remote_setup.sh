#!/usr/bin/env bash
# Installs the code and its Python environment on this worker.
#
#   remote_setup.sh ARCHIVE HASH PYTHON EXTRA       as in: lm-HASH.tar.gz 1f3a... 3.12 tpu
#
# The code of an archive goes to ~/lm/HASH and never changes under a running job; ~/lm/current points
# to the newest. The name of an environment is a hash of its packages, so that archives with the same
# packages share it. A stamp marks each as complete; without a stamp it is installed again. The last
# line is 'LMSETUP HOST HASH ok'.
set -euo pipefail
shopt -s inherit_errexit

archive=${1:?usage: remote_setup.sh ARCHIVE HASH PYTHON EXTRA} hash=${2:?} python=${3:?} extra=${4:?}
home=$HOME/lm
code=$home/$hash
mkdir -p "$home"
exec 9>>"$home/.setup" # gcloud may send this command twice
flock --wait 1500 9 || { echo 'another setup of this worker does not end' >&2 && exit 1; }

# Runs a command up to three times, since the network of a new machine may fail.
persist() {
  local try
  for try in 1 2; do
    "$@" && return
    sleep $((try * ${LM_PAUSE:-10}))
  done
  "$@"
}

# Prints the path of a Python of the given version. Ubuntu 22.04 has 3.10, so that uv fetches others.
find_python() {
  if command -v "python$python"; then return; fi
  {
    persist python3 -m pip install --user --quiet uv
    persist python3 -m uv python install "$python"
  } >&2
  python3 -m uv python find "$python"
}

if [ "$(cat "$code/.stamp" 2>/dev/null)" != "$hash" ]; then
  rm -rf "$code"
  mkdir -p "$code"
  tar -xzf "$archive" -C "$code"
  echo "$hash" >"$code/.stamp"
fi

key=$(cat "$code/pyproject.toml" "$code/constraints.txt" <(echo "$python $extra") | sha256sum)
venv=$home/venv-${key:0:16}
if [ "$(cat "$venv/.stamp" 2>/dev/null)" != "$key" ]; then
  rm -rf "$venv"
  found=$(find_python)
  "$found" -m venv "$venv"
  # Uninstalls the package itself: jobs import it from their own ~/lm/HASH.
  persist "$venv/bin/python" -m pip install --quiet -c "$code/constraints.txt" "${code}[$extra]"
  "$venv/bin/python" -m pip uninstall --quiet --yes lm
  echo "$key" >"$venv/.stamp"
fi
ln -sfn "$venv" "$code/.venv"
ln -sfn "$code" "$home/current"
rm -f "$archive"
echo "LMSETUP $(hostname) $hash ok"
