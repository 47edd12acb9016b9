# Sourced by the scripts of this folder, each of which fetches one real part that tests run against.
#
# Every script prints one line on standard output, the path of its part, and progress on standard error.
# What was fetched stays in a cache folder whose name has a hash of what was asked for, so that a changed
# pin is a new folder and never a mixture. A part that cannot be had: exit 1 with the reason on standard
# error.
#
# shellcheck shell=bash

set -euo pipefail

# shellcheck disable=SC2034 # the scripts that source this use it
parts_here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
parts_cache=${CONVOLAKE_PARTS:-${XDG_CACHE_HOME:-$HOME/.cache}/convolake/parts}
# Longest wait for another run of the same script, which may be fetching over a slow line.
parts_lock_wait_seconds=900

say() { printf '%s: %s\n' "$(basename "$0" .sh)" "$*" >&2; }

die() {
  say "$*"
  exit 1
}

need() {
  local tool
  for tool in "$@"; do
    command -v "$tool" >/dev/null || die "$tool is not installed; this part needs it"
  done
}

# part_folder NAME PIN...: the folder of this part, by the hash of its pins (file contents or words).
part_folder() {
  local name=$1
  shift
  local pin hash
  hash=$(for pin in "$@"; do if [[ -f $pin ]]; then cat "$pin"; else echo "$pin"; fi; done | sha256sum)
  printf '%s/%s-%s\n' "$parts_cache" "$name" "${hash:0:12}"
}

# fetch_once FOLDER COMMAND...: runs COMMAND in an empty FOLDER unless an earlier run finished it. Two
# runs at once take turns, and the second finds the first's work; a run that was cut short left no mark,
# so its leavings are removed. What COMMAND prints goes to a log, shown if it fails.
fetch_once() {
  local folder=$1 log=$1.log
  shift
  [[ -e $folder/.complete ]] && return
  mkdir -p "$parts_cache" || die "cannot make $parts_cache; set CONVOLAKE_PARTS to a folder that can be written"
  exec 9>"$folder.lock"
  flock -w "$parts_lock_wait_seconds" 9 || die "another run holds $folder.lock for $parts_lock_wait_seconds s"
  if [[ ! -e $folder/.complete ]]; then
    say "fetching into $folder"
    rm -rf "$folder"
    mkdir "$folder"
    if ! (cd "$folder" && "$@") >"$log" 2>&1 </dev/null; then
      tail -n 40 "$log" >&2
      die "could not be fetched; the whole log is $log"
    fi
    touch "$folder/.complete"
  fi
  exec 9>&-
}
