#!/usr/bin/env bash
# A Python with DuckDB and its Delta extension, delta-rs, pyarrow and Twilio's packages: the readers and
# clients that are not ours. Prints the path of its interpreter.
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need flock python3 sha256sum

# Wheels only: a package that wants a compiler here is a wrong pin, not a longer wait.
install() {
  python3 -m venv . &&
    bin/python -m pip install --disable-pip-version-check --no-input --only-binary :all: \
      --requirement "$parts_here/requirements.txt"
}

folder=$(part_folder python "$parts_here/requirements.txt" "$(python3 --version)")
fetch_once "$folder" install
echo "$folder/bin/python"
