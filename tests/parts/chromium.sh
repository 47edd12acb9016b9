#!/usr/bin/env bash
# Debian's Chromium, which looks at the emulator's page. Prints the path of the program; installs it where
# it is missing and this is root on a Debian.
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need flock

install() {
  apt-get update -qq &&
    DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends \
      chromium fonts-noto-color-emoji fonts-noto-core
}

if ! command -v chromium >/dev/null; then
  if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
    die "chromium is not installed and cannot be from here; this part needs it"
  fi
  mkdir -p "$parts_cache" || die "cannot make $parts_cache; set CONVOLAKE_PARTS to a folder that can be written"
  exec 9>"$parts_cache/chromium.lock"
  flock -w "$parts_lock_wait_seconds" 9 || die "another run installs chromium for $parts_lock_wait_seconds s"
  say "installing"
  if ! install >"$parts_cache/chromium.log" 2>&1 </dev/null; then
    tail -n 40 "$parts_cache/chromium.log" >&2
    die "could not be installed; the whole log is $parts_cache/chromium.log"
  fi
  exec 9>&-
fi
command -v chromium
