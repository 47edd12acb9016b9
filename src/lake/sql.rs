//! `convolake sql`: the lake as DuckDB views, as text to run.
//!
//! Two readers. [`Reader::Plain`] needs nothing but DuckDB: it works out the live files from the Delta log (newest
//! checkpoint, then the entries after it) into session variables, and reads exactly those; a bare glob would read
//! replaced files too. [`Reader::Delta`] leaves that to DuckDB's `delta` extension, which also prunes files by the log's
//! statistics. Both give the same views with every column of [`crate::table`], also where no row was ever written.
//!
//! Nothing is read here: the text depends on the path alone, and DuckDB looks when it runs. Names come from our
//! own lists; the path is the only value from outside, and is quoted.

use std::fmt::Write;

use crate::table::{Kind, TableName};

use super::{LakeError, location};

/// How the views read the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// `delta_scan` of DuckDB's `delta` extension.
    Delta,
    /// SQL alone.
    Plain,
}

/// SQL that makes the views `communications`, `conversations`, `events`, `distinct_events`, `first_response` and
/// `channel_daily` over the lake at `location`. Run again, it shows the newest version.
///
/// # Errors
/// [`LakeError::Location`].
pub fn views(location: &str, reader: Reader) -> Result<String, LakeError> {
    let root = location::parse(location)?;
    let refuse = |reason: &str| LakeError::Location {
        location: location.to_owned(),
        reason: reason.to_owned(),
    };
    let name = root
        .to_str()
        .ok_or_else(|| refuse("the path is not UTF-8, so SQL cannot name it"))?
        .trim_end_matches('/');
    // The extension takes paths for URLs and undoes percent signs: a URL says what is meant.
    let url = url::Url::from_file_path(&root).map_err(|()| refuse("the path is not absolute"))?;
    let mut sql = String::from(match reader {
        Reader::Plain => PLAIN_HEADER,
        Reader::Delta => DELTA_HEADER,
    });
    for table in TableName::ALL {
        let (template, path) = match reader {
            Reader::Plain => (PLAIN_TABLE, glob_literal(&format!("{name}/{table}"))),
            Reader::Delta => (
                DELTA_TABLE,
                format!("{}/{table}", url.as_str().trim_end_matches('/')),
            ),
        };
        let text = template
            .replace("$EMPTY_QUOTED", &quoted(&empty(table)))
            .replace("$EMPTY", &empty(table))
            .replace("$COLUMNS", &columns(table))
            .replace("$HIVE_TYPES", &hive_types(table))
            .replace("$TABLE", table.as_str())
            // Last, so that nothing in a path is taken for a placeholder; twice quoted inside a quoted statement.
            .split("$PATH_QUOTED")
            .map(|part| part.replace("$PATH", &quoted(&path)))
            .collect::<Vec<_>>()
            .join(&quoted(&quoted(&path)));
        sql.push_str(&text);
    }
    sql.push_str(DERIVED);
    Ok(sql)
}

const PLAIN_HEADER: &str = "\
-- The lake as DuckDB views, with plain SQL. The views show the version that is newest when this runs; run it
-- again to see later ones, and in every session (it keeps the list of live files in session variables).
";

const DELTA_HEADER: &str = "\
-- The lake as DuckDB views, through the extension `delta` (INSTALL delta; LOAD delta;). Always the newest version.
";

/// `_after` is the version that the checkpoint covers, -1 without one. An entry missing after it means that the log
/// was cleaned below a checkpoint of another kind.
const PLAIN_TABLE: &str = r"
SET VARIABLE convolake_$TABLE_checkpoint = (
  SELECT max(parse_filename(file)) FROM glob('$PATH/_delta_log/????????????????????.checkpoint.parquet'));
SET VARIABLE convolake_$TABLE_after = coalesce(
  CAST(left(getvariable('convolake_$TABLE_checkpoint'), 20) AS BIGINT), -1);
SET VARIABLE convolake_$TABLE_entries = (
  SELECT coalesce(list('$PATH/_delta_log/' || entry ORDER BY entry), [])
  FROM (SELECT parse_filename(file) AS entry FROM glob('$PATH/_delta_log/????????????????????.json'))
  WHERE CAST(left(entry, 20) AS BIGINT) > getvariable('convolake_$TABLE_after'));
SET VARIABLE convolake_$TABLE_actions = (
  SELECT CASE
    WHEN len(getvariable('convolake_$TABLE_entries')) = 0 AND getvariable('convolake_$TABLE_checkpoint') IS NULL
    THEN error('no Delta log of table $TABLE at ' || '$PATH')
    WHEN len(getvariable('convolake_$TABLE_entries')) > 0
      AND CAST(left(parse_filename(getvariable('convolake_$TABLE_entries')[-1]), 20) AS BIGINT)
        <> getvariable('convolake_$TABLE_after') + len(getvariable('convolake_$TABLE_entries'))
    THEN error('the log of table $TABLE starts with a checkpoint of several parts; use: convolake sql --delta')
    ELSE 'SELECT NULL::BIGINT AS version, NULL::VARCHAR AS path, NULL::BOOLEAN AS added WHERE false'
    END
    || CASE WHEN getvariable('convolake_$TABLE_checkpoint') IS NULL THEN '' ELSE
      ' UNION ALL SELECT getvariable(''convolake_$TABLE_after''), add.path, true FROM read_parquet('
      || '''$PATH_QUOTED/_delta_log/'' || getvariable(''convolake_$TABLE_checkpoint'')) WHERE add.path IS NOT NULL' END
    || CASE WHEN len(getvariable('convolake_$TABLE_entries')) = 0 THEN '' ELSE
      ' UNION ALL SELECT CAST(left(parse_filename(filename), 20) AS BIGINT),'
      || ' coalesce((json->>''$.add.path''), (json->>''$.remove.path'')), (json->>''$.add.path'') IS NOT NULL'
      || ' FROM read_json_objects(getvariable(''convolake_$TABLE_entries''), format = ''newline_delimited'', filename = true)'
      || ' WHERE coalesce((json->>''$.add.path''), (json->>''$.remove.path'')) IS NOT NULL' END);
SET VARIABLE convolake_$TABLE_files = (
  SELECT coalesce(list('$PATH/' || url_decode(path) ORDER BY path), [])
  FROM (SELECT path, arg_max(added, version) AS live FROM query(getvariable('convolake_$TABLE_actions')) GROUP BY path)
  WHERE live);
SET VARIABLE convolake_$TABLE_rows = '$EMPTY_QUOTED'
  || CASE WHEN len(getvariable('convolake_$TABLE_files')) = 0 THEN '' ELSE
    ' UNION ALL BY NAME SELECT * FROM read_parquet(getvariable(''convolake_$TABLE_files''), union_by_name = true,'
    || ' hive_partitioning = true, hive_types = $HIVE_TYPES)' END;
CREATE OR REPLACE VIEW $TABLE AS SELECT $COLUMNS FROM query(getvariable('convolake_$TABLE_rows'));
";

const DELTA_TABLE: &str = "
CREATE OR REPLACE VIEW $TABLE AS SELECT $COLUMNS FROM (
  $EMPTY UNION ALL BY NAME SELECT * FROM delta_scan('$PATH'));
";

/// Aggregates with FILTER and a join, no window functions: those are an order of magnitude slower here.
const DERIVED: &str = "
-- One row for each callback; `deliveries` above 1 are repeats.
CREATE OR REPLACE VIEW distinct_events AS
SELECT event_id, any_value(event_type) AS event_type, any_value(conversation_id) AS conversation_id,
  any_value(occurred_at) AS occurred_at, min(received_at) AS first_received_at, max(received_at) AS last_received_at,
  count(*) AS deliveries, arg_min(body, received_at) AS body, min(\"date\") AS \"date\"
FROM events GROUP BY event_id;

-- For each conversation with a customer's message: the first one, and the first answer from then on.
CREATE OR REPLACE VIEW first_response AS
WITH asked AS (
  SELECT conversation_id, min(\"date\") AS \"date\",
    arg_min(channel, occurred_at) FILTER (WHERE author_type = 'CUSTOMER') AS channel,
    min(occurred_at) FILTER (WHERE author_type = 'CUSTOMER') AS asked_at
  FROM communications GROUP BY conversation_id
), answered AS (
  SELECT asked.conversation_id, min(c.occurred_at) AS answered_at, arg_min(c.author_type, c.occurred_at) AS answered_by
  FROM communications AS c JOIN asked ON c.conversation_id = asked.conversation_id AND c.occurred_at >= asked.asked_at
  WHERE c.author_type IN ('HUMAN_AGENT', 'AI_AGENT', 'AGENT')
  GROUP BY asked.conversation_id
)
SELECT asked.conversation_id, asked.\"date\", asked.channel, asked.asked_at, answered.answered_at, answered.answered_by,
  date_diff('millisecond', asked.asked_at, answered.answered_at) / 1000.0 AS seconds
FROM asked LEFT JOIN answered ON asked.conversation_id = answered.conversation_id
WHERE asked.asked_at IS NOT NULL;

-- What each channel carried on each day that conversations closed.
CREATE OR REPLACE VIEW channel_daily AS
SELECT \"date\", channel, count(DISTINCT conversation_id) AS conversations, count(*) AS communications,
  count(DISTINCT (conversation_id, turn)) AS turns,
  count(*) FILTER (WHERE direction = 'INBOUND') AS inbound, count(*) FILTER (WHERE direction = 'OUTBOUND') AS outbound
FROM communications GROUP BY \"date\", channel;
";

/// A SELECT of no rows with every column, typed.
fn empty(table: TableName) -> String {
    let mut sql = String::from("SELECT ");
    for (at, column) in table.columns().iter().enumerate() {
        let comma = if at == 0 { "" } else { ", " };
        let _ = write!(
            sql,
            "{comma}NULL::{} AS \"{}\"",
            duckdb(column.kind),
            column.name
        );
    }
    sql.push_str(" WHERE false");
    sql
}

fn columns(table: TableName) -> String {
    let names: Vec<String> = table
        .columns()
        .iter()
        .map(|column| format!("\"{}\"", column.name))
        .collect();
    names.join(", ")
}

/// Types of the partition columns, as text inside a quoted string.
fn hive_types(table: TableName) -> String {
    let types: Vec<String> = table
        .columns()
        .iter()
        .filter(|column| table.partitions().contains(&column.name))
        .map(|column| format!("''{}'': {}", column.name, duckdb(column.kind)))
        .collect();
    format!("{{{}}}", types.join(", "))
}

fn duckdb(kind: Kind) -> String {
    match kind {
        Kind::Text => "VARCHAR".to_owned(),
        Kind::Int => "INTEGER".to_owned(),
        Kind::Long => "BIGINT".to_owned(),
        Kind::Double => "DOUBLE".to_owned(),
        Kind::Time => "TIMESTAMP WITH TIME ZONE".to_owned(),
        Kind::Day => "DATE".to_owned(),
        Kind::List(element) => format!("{}[]", duckdb(*element)),
        Kind::Struct(fields) => {
            let fields: Vec<String> = fields
                .iter()
                .map(|(name, kind)| format!("\"{name}\" {}", duckdb(*kind)))
                .collect();
            format!("STRUCT({})", fields.join(", "))
        }
    }
}

/// The inside of an SQL string.
fn quoted(text: &str) -> String {
    text.replace('\'', "''")
}

/// A path that DuckDB's file functions take literally: they expand `*`, `?` and `[` everywhere.
fn glob_literal(path: &str) -> String {
    let mut literal = String::with_capacity(path.len());
    for c in path.chars() {
        match c {
            '*' | '?' | '[' => {
                literal.push('[');
                literal.push(c);
                literal.push(']');
            }
            other => literal.push(other),
        }
    }
    literal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_cannot_leave_its_quotes() {
        for reader in [Reader::Plain, Reader::Delta] {
            let sql = views("/it's/a [lake]", reader).unwrap();
            assert!(!sql.contains("/it's"), "{sql}");
            assert!(!sql.contains('$') || reader == Reader::Plain, "{sql}");
            assert!(sql.contains("CREATE OR REPLACE VIEW channel_daily"));
        }
        assert!(views("s3://bucket", Reader::Plain).is_err());
    }
}
