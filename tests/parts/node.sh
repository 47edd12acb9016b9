#!/usr/bin/env bash
# Twilio's own SDK for Node.js, whose code signs the requests that we verify and asks the emulator, and what
# drives a browser. Prints the node_modules folder, to be given to node as NODE_PATH.
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need flock node npm sha256sum

install() {
  cp "$parts_here/node/package.json" "$parts_here/node/package-lock.json" . &&
    npm ci --ignore-scripts --no-audit --no-fund
}

folder=$(part_folder node "$parts_here/node/package-lock.json")
fetch_once "$folder" install
echo "$folder/node_modules"
