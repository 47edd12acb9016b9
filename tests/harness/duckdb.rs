//! The lake as others read it: Python scripts beside this module that print JSON.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::process::{arg, run};

/// Runs `script`, a file of `tests/it/`, and gives the JSON it printed; the error is all that it wrote.
pub(crate) fn run_script(python: &Path, script: &str, args: &[&str]) -> Result<Value, String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/it")
        .join(script);
    let printed = run(
        &format!("{script} {}", args.join(" ")),
        Command::new(python).arg("-B").arg(path).args(args),
    )?;
    serde_json::from_str(&printed).map_err(|error| format!("{script}: {error}: {printed}"))
}

/// The rows of `sql` over the lake at `lake`, read by DuckDB's own Delta extension. Each row is an object;
/// the three tables have their names.
pub(crate) fn query(python: &Path, lake: &Path, sql: &str) -> Result<Vec<Value>, String> {
    match run_script(python, "query.py", &[arg(lake), sql])? {
        Value::Array(rows) => Ok(rows),
        other => Err(format!("query.py printed {other}")),
    }
}

/// The tables that DuckDB reads are those that are there: none in an empty folder.
#[test]
fn a_query_without_tables_runs() {
    let Some(python) = super::parts::python() else {
        return;
    };
    let lake = super::folder();
    let rows = query(python, lake.path(), "select 1 as one").unwrap();
    assert_eq!(rows, [serde_json::json!({"one": 1})]);
    let missing = query(python, lake.path(), "select * from communications").unwrap_err();
    assert!(missing.contains("communications"), "{missing}");
}
