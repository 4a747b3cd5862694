# shellcheck shell=bash
# Sourced by the other scripts: how they run commands, or print them, and how they refuse.

# Runs a command; where `dry_run` is set, prints it instead, as it could be typed.
call() {
  if [ -z "${dry_run:-}" ]; then
    "$@"
    return
  fi
  local word words=()
  for word in "$@"; do
    [[ $word =~ ^[[:alnum:]_./:=,%+@-]+$ ]] || word="'${word//\'/\'\\\'\'}'"
    words+=("$word")
  done
  echo "${words[*]}"
}

fail() { echo "error: $1" >&2; exit 2; }

# Prints the head of the script, which says how it is used.
usage() { sed -n '2,/^[^#]/s/^# \?//p' "$0" >&2; exit 2; }
