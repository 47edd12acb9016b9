#!/usr/bin/env bash
# Apache Kafka itself, as jars. Prints the folder for java's class path: `java -cp 'FOLDER/*'`.
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need flock java mvn sha256sum

install() {
  mvn --batch-mode --no-transfer-progress --file "$parts_here/kafka/pom.xml" \
    dependency:copy-dependencies "-DoutputDirectory=$folder/lib"
}

folder=$(part_folder kafka "$parts_here/kafka/pom.xml")
fetch_once "$folder" install
echo "$folder/lib"
