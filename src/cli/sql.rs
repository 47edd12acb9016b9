//! `convolake sql`: the DuckDB views over a lake, on standard output.

use crate::config::args::Sql;
use crate::lake::sql::{Reader, views};

use super::{Exit, print};

pub(super) fn run(args: &Sql) -> anyhow::Result<Exit> {
    let reader = if args.delta {
        Reader::Delta
    } else {
        Reader::Plain
    };
    print(&views(&args.lake, reader)?)?;
    Ok(Exit::Done)
}
