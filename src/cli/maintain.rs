//! `convolake maintain`: vacuum, and a checkpoint where the log is long without one.

use serde::Serialize;

use crate::config::Invalid;
use crate::config::args::Maintain;
use crate::lake::{Access, RETENTION_LEAST, Sweep, Swept};
use crate::lifecycle::Clock;

use super::{Exit, block_on, cores, open_lake, print};

/// What `--json` prints.
#[derive(Serialize)]
struct Printed<'a> {
    dry_run: bool,
    tables: &'a [Swept],
}

pub(super) fn run(args: &Maintain) -> anyhow::Result<Exit> {
    if args.retain < RETENTION_LEAST && !args.writers_stopped {
        let reason = format!(
            "--retain {:?}: below {} minutes, a file that a writer is about to commit could be taken for an orphan; \
             give more, or stop every writer and say so with --writers-stopped",
            args.retain,
            RETENTION_LEAST.as_secs() / 60
        );
        return Err(Invalid(reason).into());
    }
    let sweep = Sweep {
        retain: args.retain,
        dry_run: args.dry_run,
        clock: Clock::system(),
    };
    let tables = block_on(cores(), async {
        let lake = open_lake(&args.lake, Access::Existing).await?;
        anyhow::Ok(lake.sweep(sweep).await?)
    })?;
    print(&if args.json {
        let printed = Printed {
            dry_run: args.dry_run,
            tables: &tables,
        };
        format!("{}\n", serde_json::to_string(&printed)?)
    } else {
        tables.iter().map(|it| text(it, args.dry_run)).collect()
    })?;
    Ok(Exit::Done)
}

fn text(swept: &Swept, dry_run: bool) -> String {
    use std::fmt::Write;
    let did = if dry_run {
        "nothing deleted".to_owned()
    } else {
        format!("{} deleted", swept.deleted)
    };
    let mut out = format!(
        "{} at version {}: {} files live, {} kept for {} h; {} orphans and {} staged ({} bytes), {did}\n",
        swept.table,
        swept.version,
        swept.live,
        swept.kept,
        swept.retain_seconds / 3600,
        swept.orphans,
        swept.staged,
        swept.bytes,
    );
    for file in &swept.files {
        let _ = writeln!(out, "  {file}");
    }
    let named = swept.files.len() as u64;
    if swept.orphans + swept.staged > named {
        let _ = writeln!(out, "  … and {} more", swept.orphans + swept.staged - named);
    }
    if let Some(version) = swept.checkpoint {
        let _ = writeln!(out, "  checkpoint written of version {version}");
    }
    out
}
