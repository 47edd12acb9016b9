//! Faults that are changes of data: of a group's offsets, of a topic, of the lake's files, of the API.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{Offset, TopicPartitionList};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::harness::duckdb::run_script;
use crate::harness::http::pooled_client;
use crate::harness::process::arg;
use crate::harness::{ACCOUNT, SLOW_POLL_INTERVAL, free_address, until};
use crate::plan::{Edit, Offsets};
use crate::rig::{Rig, named};
use crate::sweep;
use crate::world::{PARTITIONS, topics};

/// Longest answer of a broker.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Longest time until every partition has an owner.
const SETTLE_LIMIT: Duration = Duration::from_secs(60);
/// Longest time until a group whose members were killed has none.
const EMPTY_LIMIT: Duration = Duration::from_secs(60);

/// The two groups of the row's workers.
fn groups(rig: &Rig<'_>) -> [String; 2] {
    ["archive", "enricher"].map(|work| format!("{}-{work}", rig.topic))
}

fn consumer(rig: &mut Rig<'_>, group: &str) -> BaseConsumer {
    let mut config = rig.cluster().kafka.config();
    config.set("group.id", group).create().unwrap()
}

fn partitions(rig: &Rig<'_>, offset: Offset) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        list.add_partition_offset(&rig.topic, partition, offset)
            .unwrap();
    }
    list
}

/// Kafka's own offsets of the archive's group, which are written after the lake has them.
pub(crate) fn hints(rig: &mut Rig<'_>) -> BTreeMap<i32, i64> {
    if rig.lake.is_none() {
        return BTreeMap::new();
    }
    let [archive, _] = groups(rig);
    let list = partitions(rig, Offset::Invalid);
    let committed = consumer(rig, &archive)
        .committed_offsets(list, ANSWER_LIMIT)
        .unwrap();
    let known = committed
        .elements()
        .into_iter()
        .filter_map(|element| match element.offset() {
            Offset::Offset(offset) => Some((element.partition(), offset)),
            _ => None,
        });
    known.collect()
}

/// Waits until each partition has an owner in both groups. A member that comes back under its name gets what its
/// group had decided, and no new decision is made: killed between the two halves of the first one, in which
/// partitions change hands, such a group would leave some of them to nobody for good.
pub(crate) async fn settled(rig: &mut Rig<'_>) {
    for group in groups(rig) {
        let consumer = consumer(rig, &group);
        let deadline = Instant::now() + SETTLE_LIMIT;
        // A row whose Kafka is away from its beginning has nothing to wait for.
        while owned(&consumer, &group) < PARTITIONS && Instant::now() < deadline {
            sleep(SLOW_POLL_INTERVAL).await;
        }
    }
}

/// Partitions that members of a group with nothing left to decide own.
fn owned(consumer: &BaseConsumer, group: &str) -> i32 {
    let Ok(list) = consumer.fetch_group_list(Some(group), ANSWER_LIMIT) else {
        return 0;
    };
    let stable = list
        .groups()
        .iter()
        .filter(|group| group.state() == "Stable");
    let members = stable.flat_map(|group| group.members());
    members
        .filter_map(|member| partitions_of(member.assignment()?))
        .sum()
}

/// The count in an assignment as members get it: version, number of topics, then of each the name and its
/// partitions. Ours have one topic.
fn partitions_of(assignment: &[u8]) -> Option<i32> {
    let name = u16::from_be_bytes(assignment.get(6..8)?.try_into().ok()?);
    let count = assignment.get(8 + usize::from(name)..)?.first_chunk()?;
    Some(i32::from_be_bytes(*count))
}

/// Sets what Kafka believes the groups have read; their members must be gone.
pub(crate) async fn offsets(rig: &mut Rig<'_>, offsets: Offsets) {
    for group in groups(rig) {
        match offsets {
            Offsets::Deleted => {
                let admin: AdminClient<_> = rig.cluster().kafka.config().create().unwrap();
                until("the group is deleted", EMPTY_LIMIT, async || {
                    let deleted = admin.delete_groups(&[&group], &AdminOptions::new()).await;
                    match deleted.map_err(|error| error.to_string())?.pop() {
                        Some(Err((_, code))) => Err(code.to_string()),
                        Some(Ok(_)) | None => Ok(()),
                    }
                })
                .await;
            }
            Offsets::AtStart | Offsets::AtEnd => {
                let offset = if offsets == Offsets::AtStart {
                    Offset::Offset(0)
                } else {
                    Offset::End
                };
                let list = match offset {
                    Offset::End => ends(rig, &group),
                    start => partitions(rig, start),
                };
                let consumer = consumer(rig, &group);
                until("the offsets are set", EMPTY_LIMIT, async || {
                    consumer
                        .commit(&list, CommitMode::Sync)
                        .map_err(|error| error.to_string())
                })
                .await;
            }
        }
    }
}

fn ends(rig: &mut Rig<'_>, group: &str) -> TopicPartitionList {
    let consumer = consumer(rig, group);
    let mut list = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        let (_, high) = consumer
            .fetch_watermarks(&rig.topic, partition, ANSWER_LIMIT)
            .unwrap();
        list.add_partition_offset(&rig.topic, partition, Offset::Offset(high))
            .unwrap();
    }
    list
}

/// Records that no receiver would have written: not JSON, no ids, a megabyte of depth.
pub(crate) async fn poison(rig: &mut Rig<'_>, count: u32) {
    let producer: FutureProducer = rig.cluster().kafka.config().create().unwrap();
    for n in 0..count {
        let value = match n % 3 {
            0 => format!("\u{0} not JSON {n}"),
            1 => format!("{{\"eventType\":\"CONVERSATION_CREATED\",\"n\":{n}}}"),
            _ => format!("{n}{}", "[".repeat(500_000)),
        };
        rig.planted.insert(named(value.as_bytes()));
        let key = format!("poison-{n}");
        let record = FutureRecord::to(&rig.topic).key(&key).payload(&value);
        producer.send(record, ANSWER_LIMIT).await.unwrap();
    }
    rig.times += u64::from(count);
}

/// Gives the emulator a schedule of faults, or none.
pub(crate) async fn api(rig: &mut Rig<'_>, schedule: Option<&str>) {
    let [(_, account), (_, token)] = ACCOUNT else {
        unreachable!("two entries")
    };
    let script = match schedule {
        None => String::new(),
        Some(name) => {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/faults");
            std::fs::read_to_string(folder.join(format!("{name}.yaml"))).unwrap()
        }
    };
    let url = format!(
        "http://{}/emulator/faults",
        rig.world.played_before().address
    );
    let put = pooled_client()
        .put(&url)
        .basic_auth(account, Some(token))
        .header("content-type", "application/yaml")
        .body(script);
    let answer = put.send().await.unwrap();
    assert!(answer.status().is_success(), "{url}: {}", answer.status());
    rig.times += u64::from(schedule.is_some());
    rig.over();
}

/// `args` with the row's places filled in.
pub(crate) fn filled(rig: &mut Rig<'_>, args: &[&str]) -> Vec<String> {
    let lake = rig.lake_path();
    let api = format!("http://{}", rig.world.played_before().address);
    let kafka = rig.cluster().kafka.address().to_owned();
    let fill = |word: &&str| match *word {
        "{lake}" => arg(&lake).to_owned(),
        "{api}" => api.clone(),
        "{kafka}" => kafka.clone(),
        "{topic}" => rig.topic.clone(),
        "{ops}" => free_address(),
        other => other.to_owned(),
    };
    args.iter().map(fill).collect()
}

/// Events whose timestamps no calendar of ours is made for.
pub(crate) async fn odd_times(rig: &mut Rig<'_>, count: u32) {
    let producer: FutureProducer = rig.cluster().kafka.config().create().unwrap();
    for n in 0..count {
        let time = ["1970-01-01T00:00:00Z", "9999-12-31T23:59:59Z"][n as usize % 2];
        let id = format!("odd-{n}");
        let value =
            json!({"eventType": "CONVERSATION_CREATED", "timestamp": time, "data": {"id": id}})
                .to_string();
        rig.planted.insert(named(value.as_bytes()));
        let record = FutureRecord::to(&rig.topic).key(&id).payload(&value);
        producer.send(record, ANSWER_LIMIT).await.unwrap();
    }
    rig.times += u64::from(count);
}

fn admin(rig: &mut Rig<'_>) -> AdminClient<DefaultClientContext> {
    rig.cluster().kafka.config().create().unwrap()
}

async fn delete_topics(rig: &mut Rig<'_>, names: &[&str]) {
    let deleted = admin(rig).delete_topics(names, &AdminOptions::new()).await;
    for result in deleted.unwrap() {
        result.unwrap();
    }
}

/// Makes the named topics; Kafka deletes in the background, so it is tried until it may be.
async fn make_topics(rig: &mut Rig<'_>, names: &[&str]) {
    let admin = admin(rig);
    until("topics can be made", EMPTY_LIMIT, async || {
        let new = names
            .iter()
            .map(|name| NewTopic::new(name, PARTITIONS, TopicReplication::Fixed(1)));
        let new: Vec<_> = new.collect();
        let made = admin.create_topics(&new, &AdminOptions::new()).await;
        let made = made.map_err(|error| error.to_string())?;
        match made.into_iter().find_map(Result::err) {
            Some((_, RDKafkaErrorCode::TopicAlreadyExists)) | None => Ok(()),
            Some((name, code)) => Err(format!("{name}: {code}")),
        }
    })
    .await;
}

/// The row's topics with nothing in them, under the same names.
pub(crate) async fn recreate_topics(rig: &mut Rig<'_>) {
    let names = topics(&rig.topic);
    let names = names.each_ref().map(String::as_str);
    delete_topics(rig, &names).await;
    make_topics(rig, &names).await;
    // A broker that has not quite deleted them says that they exist; then they are made once more.
    make_topics(rig, &names).await;
    rig.times += 1;
}

/// Takes everything out of the topic of events that is in it.
pub(crate) async fn retention(rig: &mut Rig<'_>) {
    let [archive, _] = groups(rig);
    let topic = rig.topic.clone();
    let records = rig.cluster().kafka.records(&topic);
    rig.excused
        .extend(records.iter().map(|record| named(&record.value)));
    let ends = ends(rig, &archive);
    admin(rig)
        .delete_records(&ends, &AdminOptions::new())
        .await
        .unwrap();
    rig.times += 1;
}

pub(crate) async fn drop_dead_letters(rig: &mut Rig<'_>) {
    let [_, _, dead] = topics(&rig.topic);
    delete_topics(rig, &[&dead]).await;
}

pub(crate) async fn make_dead_letters(rig: &mut Rig<'_>) {
    let [_, _, dead] = topics(&rig.topic);
    make_topics(rig, &[&dead]).await;
    rig.over();
}

/// Changes files of the lake.
pub(crate) fn lake(rig: &mut Rig<'_>, what: Edit) {
    let lake = rig.lake_path();
    let log = lake.join("events/_delta_log");
    match what {
        Edit::StrayFiles => {
            std::fs::write(log.join("00000000000000009999.json#1"), "{\"commitInfo\":").unwrap();
            std::fs::write(lake.join("events/stray.parquet#2"), "PAR1").unwrap();
        }
        Edit::Abandoned => rig.abandoned += sweep::abandon(&lake),
        Edit::Compact => {
            for table in ["communications", "conversations", "events"] {
                let table = lake.join(table);
                // One that loses to our commits gives up, as it should.
                if let Err(why) =
                    run_script(rig.world.python, "delta_rs.py", &[arg(&table), "compact"])
                {
                    let lost = why.contains("CommitFailed")
                        || why.contains("conflict")
                        || why.contains("Conflict");
                    assert!(lost, "{why}");
                }
            }
        }
        Edit::DeleteData | Edit::CutData => {
            unwatch(rig);
            let file = newest_data(&lake.join("communications"));
            match what {
                Edit::DeleteData => std::fs::remove_file(&file).unwrap(),
                _ => {
                    let bytes = std::fs::read(&file).unwrap();
                    std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
                }
            }
        }
        Edit::Empty => {
            empty(rig);
            rig.watch();
        }
    }
    rig.times += 1;
}

/// Leaves no lake, and nobody who reads it.
pub(crate) fn empty(rig: &mut Rig<'_>) {
    unwatch(rig);
    std::fs::remove_dir_all(rig.lake_path()).unwrap();
}

/// From here on no reader can be content with what there is.
fn unwatch(rig: &mut Rig<'_>) {
    if let Some(watched) = rig.watched() {
        assert_eq!(watched["broken"], json!([]));
    }
}

/// The data file of a table that was written last.
pub(crate) fn newest_data(table: &Path) -> PathBuf {
    let mut folders = vec![table.to_owned()];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("_delta_log") {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "parquet") {
                files.push((path.metadata().unwrap().modified().unwrap(), path));
            }
        }
    }
    files.sort();
    files.pop().expect("the lake has rows").1
}
