//! Builds that lack a guard, and the row that has to see each.
//!
//! A sabotage that leaves its row as it was is a harness that sees nothing: that fails the run.

use crate::line::Verdict;
use crate::plan::Row;
use crate::world::{Program, Size, World};
use crate::{Arguments, build, matrix, one, tell};

/// Runs of a row, each with the next seed: a kill can miss the moment in which the guard would have been wanted.
const TRIES: usize = 6;

/// What each takes out is said by the build itself (`src/config/sabotage.rs`).
const SEEN_BY: [(&str, &str); 8] = [
    ("s1", "R1"),
    ("s2", "R3"),
    ("s3", "C14"),
    ("s4", "C5"),
    ("s5", "R9"),
    ("s6", "R9"),
    ("s7", "R4"),
    ("s8", "C3"),
];

/// Runs each against its row; whether every one of them was seen.
pub(crate) async fn run(arguments: &Arguments, size: Size) -> Result<bool, String> {
    let path = match &arguments.binary {
        Some(path) => path.clone(),
        None => sabotaged()?,
    };
    let program = Program {
        path,
        sabotage: None,
    };
    let mut world = World::new(program, size, arguments)?;
    let mut seen = true;
    for (sabotage, id) in SEEN_BY {
        if !arguments.rows.is_empty() && !arguments.rows.iter().any(|row| row == id) {
            continue;
        }
        world.program.sabotage = Some(sabotage);
        let row = matrix::rows()
            .find(|row| row.id == id)
            .expect("a row of the matrix");
        seen &= sees(arguments, &mut world, row).await?;
    }
    Ok(seen)
}

/// Whether the row sees it, in one of [`TRIES`] runs. One that cannot run here sees nothing here, and says so.
async fn sees(arguments: &Arguments, world: &mut World, row: &'static Row) -> Result<bool, String> {
    for seed in (arguments.seed..).take(TRIES) {
        world.seed = seed;
        // Another try has topics of the same names.
        if seed > arguments.seed {
            world.cluster = None;
        }
        let line = one(world, row).await;
        tell(arguments, &line)?;
        if line.verdict != Verdict::Held {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The build that has the feature, kept apart: cargo has one place for both.
fn sabotaged() -> Result<std::path::PathBuf, String> {
    let built = build(&["--features", "sabotage"])?;
    let kept = built.with_file_name("convolake-sabotage");
    std::fs::copy(&built, &kept).map_err(|error| format!("{}: {error}", kept.display()))?;
    build(&[])?;
    Ok(kept)
}
