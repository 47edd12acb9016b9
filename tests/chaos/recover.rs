//! What a power cut left, started again: every copy of a row's image, one after the other.
//!
//! A copy of a spool is given to a receiver whose Kafka is a new one, in memory, so that what comes out of the
//! copy is not mixed with what came out of the original. A copy of a lake is opened by a foreign reader as it
//! is, compared with the offsets that Kafka had been told before the cut, and then given to a worker on the
//! row's own topic, which has to make it whole.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::process::{Command, Stdio};

use rdkafka::ClientConfig;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use serde_json::Value;

use crate::harness::duckdb::run_script;
use crate::harness::parts::{self, Kafka, Placed};
use crate::harness::process::{arg, run};
use crate::oracle::Patience;
use crate::plan::{Place, Who};
use crate::rig::{Cut, Rig, named};
use crate::world::{PARTITIONS, topics};

/// Recovers each copy; what is not there, or cannot be read, is broken.
pub(crate) async fn copies(
    rig: &mut Rig<'_>,
    acked: &HashMap<String, u64>,
    broken: &mut Vec<String>,
) {
    let cuts = std::mem::take(&mut rig.cuts);
    for (n, mut cut) in cuts.into_iter().enumerate() {
        if let Err(why) = cut.volume.mount_image() {
            broken.push(format!("copy {n} cannot be mounted: {why}"));
            continue;
        }
        let found = match cut.place {
            Place::Spool => spool(rig, &cut, acked).await,
            Place::Lake => lake(rig, &cut).await,
            Place::Broker => broker(rig, &cut, acked).await,
        };
        if let Err(why) = found {
            broken.push(format!("copy {n}, cut after {} ms: {why}", cut.at));
        }
    }
}

async fn spool(rig: &mut Rig<'_>, cut: &Cut, acked: &HashMap<String, u64>) -> Result<(), String> {
    let mock: MockCluster<'_, DefaultProducerContext> =
        MockCluster::new(1).map_err(|error| error.to_string())?;
    let names = topics(&rig.topic);
    for name in &names {
        mock.create_topic(name, PARTITIONS, 1)
            .map_err(|error| error.to_string())?;
    }
    let at = rig.those(Who::Receiver)[0];
    let original = rig.roles[at].args.clone();
    rig.roles[at].set("--kafka", &mock.bootstrap_servers());
    rig.roles[at].set("--spool", arg(&cut.volume.path()));
    rig.start_role(at).await;
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", mock.bootstrap_servers())
        .set("group.id", "convolake-chaos");
    let wanted: HashSet<&String> = acked
        .iter()
        .filter(|(_, t)| **t < cut.at)
        .map(|(hash, _)| hash)
        .collect();
    let mut patience = Patience::of(rig);
    let missing = loop {
        let records = names.iter().flat_map(|name| parts::records(&config, name));
        let found: HashSet<String> = records.map(|record| named(&record.value)).collect();
        let missing = wanted.iter().filter(|hash| !found.contains(**hash)).count();
        if !patience.goes_on(missing as u64).await {
            break missing;
        }
    };
    rig.roles[at].kill9();
    rig.roles[at].args = original;
    *rig.also.entry("acked before cuts".to_owned()).or_default() += wanted.len() as f64;
    match missing {
        0 => Ok(()),
        some => Err(format!(
            "{some} of {} answered 2xx before it are lost",
            wanted.len()
        )),
    }
}

/// A broker on the copy has everything that was acknowledged before.
async fn broker(rig: &mut Rig<'_>, cut: &Cut, acked: &HashMap<String, u64>) -> Result<(), String> {
    let placed = Placed {
        data: Some(cut.volume.path()),
        adopted: true,
        ..Placed::default()
    };
    let kafka = Kafka::start_placed(placed)
        .await
        .ok_or("Apache Kafka could not be had")?;
    let records = topics(&rig.topic).map(|name| kafka.records(&name));
    let found: HashSet<String> = records
        .iter()
        .flatten()
        .map(|record| named(&record.value))
        .collect();
    let before: Vec<&String> = acked
        .iter()
        .filter(|(_, t)| **t < cut.at)
        .map(|(hash, _)| hash)
        .collect();
    *rig.also.entry("acked before cuts".to_owned()).or_default() += before.len() as f64;
    match before.iter().filter(|hash| !found.contains(**hash)).count() {
        0 => Ok(()),
        some => Err(format!(
            "{some} of {} answered 2xx before it are lost",
            before.len()
        )),
    }
}

async fn lake(rig: &mut Rig<'_>, cut: &Cut) -> Result<(), String> {
    let path = cut.volume.path();
    let seen = look(rig.world.python, &path)?;
    if let Some(first) = seen["broken"].as_array().and_then(|broken| broken.first()) {
        return Err(format!("a foreign reader met {first}"));
    }
    for (partition, hint) in &cut.hints {
        let position = seen["positions"][partition.to_string()]
            .as_i64()
            .unwrap_or(0);
        if position < *hint {
            return Err(format!(
                "partition {partition} is at {position}, but {hint} had been acknowledged"
            ));
        }
    }
    let at = rig.those(Who::Worker)[0];
    let original = rig.roles[at].args.clone();
    rig.roles[at].set("--lake", arg(&path));
    rig.start_role(at).await;
    let recovered = whole(rig, &path).await;
    rig.roles[at].kill9();
    rig.roles[at].args = original;
    recovered
}

/// Waits until the copy has everything, once.
async fn whole(rig: &mut Rig<'_>, path: &Path) -> Result<(), String> {
    let (hashes, truth) = (rig.folder.path().join("copy-hashes"), rig.truth());
    let topic = rig.topic.clone();
    let records = rig.cluster().kafka.records(&topic);
    let wanted: HashSet<String> = records.iter().map(|record| named(&record.value)).collect();
    let mut patience = Patience::of(rig);
    loop {
        let args = [arg(path), arg(&truth), arg(&hashes)];
        let counts = run_script(rig.world.python, "../chaos/audit.py", &args)?;
        let archived = std::fs::read_to_string(&hashes).map_err(|error| error.to_string())?;
        let archived: HashSet<&str> = archived.lines().collect();
        let missing = wanted
            .iter()
            .filter(|hash| !archived.contains(hash.as_str()));
        let missing = missing.count() as u64;
        let wrong = ["dup_raw", "dup_view", "invented", "missing", "torn"]
            .iter()
            .map(|name| counts[name].as_u64().unwrap_or(u64::MAX / 8))
            .sum::<u64>();
        if !patience.goes_on(missing + wrong).await {
            return match missing + wrong {
                0 => Ok(()),
                _ => Err(format!("{missing} bodies are missing; {counts}")),
            };
        }
    }
}

/// One look of the foreign reader.
fn look(python: &Path, lake: &Path) -> Result<Value, String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/chaos/watch.py");
    let mut watch = Command::new(python);
    watch.arg("-B").arg(script).arg(lake).stdin(Stdio::null());
    let printed = run("watch.py", &mut watch)?;
    serde_json::from_str(&printed).map_err(|error| format!("watch.py: {error}: {printed}"))
}
