//! `convolake verify`: is every closed conversation in the lake, whole and once?

use serde::Serialize;

use crate::api::Api;
use crate::config::Secrets;
use crate::config::args::Verify;
use crate::lake::{Access, Lake};
use crate::lifecycle::Clock;
use crate::replay::{Selection, Source, replay};
use crate::topic::{self, Gap, Publisher};
use crate::verify::repair::{Repair, repair};
use crate::verify::{Report, verify};

use super::{Exit, PUBLISHER_DRAIN, block_on, cores, kafka_at, open_lake, print};

/// Findings of a kind that are named in the text; the JSON names all.
const NAMED: usize = 50;

/// What `--json` prints.
#[derive(Serialize)]
struct Printed<'a> {
    #[serde(flatten)]
    report: &'a Report,
    #[serde(skip_serializing_if = "Option::is_none")]
    repair: Option<&'a Healed>,
}

/// What `--repair` did.
#[derive(Serialize)]
struct Healed {
    #[serde(flatten)]
    repair: Repair,
    /// Callbacks of lost files that were published again.
    events_published: u64,
    /// Those that Kafka does not have any more.
    events_gone: u64,
}

pub(super) fn run(args: Verify, secrets: &Secrets) -> anyhow::Result<Exit> {
    let api = super::ingest::api(&args.api, secrets)?;
    let kafka = args.kafka.clone();
    let kafka = kafka.map(|brokers| kafka_at(brokers, &args.names));
    let kafka = kafka.transpose()?;
    let (report, repaired) = block_on(cores(), async {
        let lake = open_lake(&args.lake, Access::Existing).await?;
        let report = verify(&lake, &Api::new(api, Clock::system())?).await?;
        let repaired = match kafka {
            Some((settings, topics)) if args.repair => {
                Some(heal(&lake, &report, &settings, &topics).await?)
            }
            _ => None,
        };
        anyhow::Ok((report, repaired))
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
) -> anyhow::Result<Healed> {
    let publisher = Publisher::start(settings)?;
    let offsets = report.lost_offsets();
    let lost: u64 = offsets.iter().map(Gap::offsets).sum();
    let (mut events_published, mut events_gone) = (0, 0);
    // First, because the log forgets what a file held once it is taken out.
    if lost > 0 {
        let selection = Selection {
            offsets,
            ..Selection::default()
        };
        let from = Source::Events;
        let replayed = replay(settings, &publisher, topics, from, &selection, false).await?;
        events_published = replayed.replayed;
        events_gone = lost - replayed.selected;
    }
    let repair = repair(lake, report, &publisher, topics, Clock::system()).await?;
    publisher.close(PUBLISHER_DRAIN).await?;
    Ok(Healed {
        repair,
        events_published,
        events_gone,
    })
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
        let held = match &it.offsets[..] {
            [] => String::new(),
            offsets => {
                let flags = offsets.iter().map(|it| format!(" --offsets {it}"));
                let flags: String = flags.collect();
                format!("; what Kafka still has of it: `replay --from events{flags}`, or --repair")
            }
        };
        format!(
            "{}/{}: {} ({} rows{ids}){held}",
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

fn repair_text(healed: &Healed) -> String {
    let repair = &healed.repair;
    format!(
        "repair: {} damaged files taken out, {} callbacks of theirs published again ({} gone from Kafka), {} closes \
         published; verify again when ingest has passed them\n",
        repair.files_dropped, healed.events_published, healed.events_gone, repair.closes_published
    )
}
