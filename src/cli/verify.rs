//! `convolake verify`: is every closed conversation in the lake, whole and once?

use serde::Serialize;

use crate::api::Api;
use crate::config::Secrets;
use crate::config::args::Verify;
use crate::ingest;
use crate::lake::{Access, Lake};
use crate::lifecycle::Clock;
use crate::topic::{self, Publisher};
use crate::verify::repair::{Repair, repair};
use crate::verify::{Report, positions, verify};

use super::{Exit, KAFKA_CHECK, PUBLISHER_DRAIN, block_on, cores, kafka_at, open_lake, print};

/// Findings of a kind that are named in the text; the JSON names all.
const NAMED: usize = 50;

/// What `--json` prints.
#[derive(Serialize)]
struct Printed<'a> {
    #[serde(flatten)]
    report: &'a Report,
    #[serde(skip_serializing_if = "Option::is_none")]
    repair: Option<&'a Repair>,
}

pub(super) fn run(args: Verify, secrets: &Secrets) -> anyhow::Result<Exit> {
    let api = super::ingest::api(&args.api, secrets)?;
    let kafka = args.kafka.clone();
    let kafka = kafka.map(|brokers| kafka_at(brokers, &args.names));
    let kafka = kafka.transpose()?;
    let (report, repaired) = block_on(cores(), async {
        let lake = open_lake(&args.lake, Access::Existing).await?;
        let mut report = verify(&lake, &Api::new(api, Clock::system())?).await?;
        let Some((settings, topics)) = kafka else {
            return anyhow::Ok((report, None));
        };
        let cluster = topic::cluster_id(&settings, KAFKA_CHECK).await?;
        let group = format!("{}-archive", args.group);
        let app = |partition| ingest::position_name(&group, &cluster, &topics.events, partition);
        positions(&lake, &mut report, app).await?;
        let repaired = if args.repair {
            Some(heal(&lake, &report, &settings, &topics).await?)
        } else {
            None
        };
        Ok((report, repaired))
    })?;
    print(&if args.json {
        let printed = Printed {
            report: &report,
            repair: repaired.as_ref(),
        };
        format!("{}\n", serde_json::to_string(&printed)?)
    } else {
        text(&report) + &repaired.as_ref().map(repair_text).unwrap_or_default()
    })?;
    Ok(if report.is_complete() {
        Exit::Done
    } else {
        Exit::Found
    })
}

async fn heal(
    lake: &Lake,
    report: &Report,
    settings: &topic::Settings,
    topics: &topic::Topics,
) -> anyhow::Result<Repair> {
    let publisher = Publisher::start(settings)?;
    let repaired = repair(lake, report, &publisher, topics, Clock::system()).await?;
    publisher.close(PUBLISHER_DRAIN).await?;
    Ok(repaired)
}

/// The report for a person.
pub(super) fn text(report: &Report) -> String {
    let mut out = format!(
        "closed conversations: {} complete, {} partial, {} gone, {} missing, {} torn\n",
        report.complete, report.partial, report.gone, report.missing, report.torn
    );
    name(&mut out, &report.problems, |it| {
        format!("{}: {}: {}", it.conversation_id, it.kind, it.why)
    });
    name(&mut out, &report.unheld, |it| {
        format!(
            "{}: a callback announced {}, and no row holds it",
            it.conversation_id, it.communication_id
        )
    });
    name(&mut out, &report.damaged, |it| {
        let ids = it.conversations.as_ref();
        let ids = ids.map_or(String::new(), |(first, last)| {
            format!(", conversations {first} to {last}")
        });
        format!(
            "{}/{}: {} ({} rows{ids})",
            it.table, it.path, it.why, it.rows
        )
    });
    name(&mut out, &report.positions, String::clone);
    out.push_str(if report.is_complete() {
        "verdict: complete\n"
    } else {
        "verdict: NOT complete\n"
    });
    out
}

fn name<T>(out: &mut String, all: &[T], words: impl Fn(&T) -> String) {
    for one in all.iter().take(NAMED) {
        *out += &format!("  {}\n", words(one));
    }
    if all.len() > NAMED {
        *out += &format!("  … and {} more (--json names all)\n", all.len() - NAMED);
    }
}

fn repair_text(repair: &Repair) -> String {
    format!(
        "repair: {} damaged files taken out, {} closes published; verify again when ingest has passed them\n",
        repair.files_dropped, repair.closes_published
    )
}
