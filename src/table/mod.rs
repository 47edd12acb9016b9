//! The three tables: their columns, and how an older table of ours becomes today's.
//!
//! Owns every column name, type and nullability of the lake ([`TableName::columns`]; `schemas/tables.json`
//! is the same for other tools, compared by a test), the order of rows in a file, and the rule by which a
//! table found on disk is taken over or refused ([`reconcile`]). [`batch`] turns rows into Arrow.
//!
//! Pure: no I/O, no clock. Refuses to guess: a known column with another type, or a column of somebody
//! else's that may not be null, is a [`Mismatch`] and nothing is written.

mod batch;
mod columns;
pub mod decode;
pub mod row;

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema, TimeUnit};

pub use batch::{communications_batch, conversations_batch, events_batch};

/// One of the lake's tables; its name is also its folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TableName {
    /// Messages and utterances of closed conversations.
    Communications,
    /// Closed conversations.
    Conversations,
    /// Callbacks as received.
    Events,
}

impl TableName {
    /// Every table, in the order they are created.
    pub const ALL: [TableName; 3] = [
        TableName::Communications,
        TableName::Conversations,
        TableName::Events,
    ];

    /// Folder under the lake's root, and name in SQL.
    pub const fn as_str(self) -> &'static str {
        match self {
            TableName::Communications => "communications",
            TableName::Conversations => "conversations",
            TableName::Events => "events",
        }
    }

    /// Columns in their order in the table; partition columns last.
    pub const fn columns(self) -> &'static [Column] {
        match self {
            TableName::Communications => columns::COMMUNICATIONS,
            TableName::Conversations => columns::CONVERSATIONS,
            TableName::Events => columns::EVENTS,
        }
    }

    /// Partition columns, outermost folder first.
    pub const fn partitions(self) -> &'static [&'static str] {
        match self {
            TableName::Communications => &["channel", "date"],
            TableName::Conversations | TableName::Events => &["date"],
        }
    }

    /// Columns that rows of one file are sorted by, nulls first.
    pub const fn sorted_by(self) -> &'static [&'static str] {
        match self {
            TableName::Communications => &["conversation_id", "occurred_at", "position"],
            TableName::Conversations => &["conversation_id"],
            TableName::Events => &["received_at", "kafka_partition", "kafka_offset"],
        }
    }

    /// Columns whose minimum and maximum stand in the Delta log, for pruning. Never text or addresses: the
    /// log outlives an erasure.
    pub const fn pruned_by(self) -> &'static [&'static str] {
        match self {
            TableName::Communications => {
                &["conversation_id", "occurred_at", "created_at", "position"]
            }
            TableName::Conversations => &[
                "conversation_id",
                "created_at",
                "closed_at",
                "enriched_at",
                "kafka_partition",
                "kafka_offset",
            ],
            TableName::Events => &[
                "conversation_id",
                "event_type",
                "occurred_at",
                "received_at",
                "kafka_partition",
                "kafka_offset",
            ],
        }
    }

    /// Whether a conversation may be written once only. `events` keeps repeats: it is the raw record.
    pub const fn is_keyed(self) -> bool {
        match self {
            TableName::Communications | TableName::Conversations => true,
            TableName::Events => false,
        }
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A column of a table.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Column {
    /// Name, the same in rows, Parquet, Delta and SQL.
    pub name: &'static str,
    /// Type.
    pub kind: Kind,
    /// Whether every row has it (NOT NULL).
    pub required: bool,
}

/// Type of a column, in the terms that Delta and Parquet share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// UTF-8.
    Text,
    /// 32-bit integer.
    Int,
    /// 64-bit integer.
    Long,
    /// 64-bit float.
    Double,
    /// Microseconds since 1970, UTC.
    Time,
    /// Days since 1970.
    Day,
    /// A list; elements may be null.
    List(&'static Kind),
    /// Named fields; each may be null.
    Struct(&'static [(&'static str, Kind)]),
}

impl Kind {
    /// As Arrow. List elements are named `element`, as the Parquet format asks (LogicalTypes.md, "Lists").
    pub fn to_arrow(self) -> DataType {
        match self {
            Kind::Text => DataType::Utf8,
            Kind::Int => DataType::Int32,
            Kind::Long => DataType::Int64,
            Kind::Double => DataType::Float64,
            Kind::Time => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            Kind::Day => DataType::Date32,
            Kind::List(element) => {
                DataType::List(Arc::new(Field::new("element", element.to_arrow(), true)))
            }
            Kind::Struct(fields) => DataType::Struct(Fields::from_iter(
                fields
                    .iter()
                    .map(|(name, kind)| Field::new(*name, kind.to_arrow(), true)),
            )),
        }
    }
}

impl fmt::Display for Kind {
    /// As DuckDB and Spark SQL read it: `list<struct<text: string, …>>`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Text => f.write_str("string"),
            Kind::Int => f.write_str("int"),
            Kind::Long => f.write_str("long"),
            Kind::Double => f.write_str("double"),
            Kind::Time => f.write_str("timestamp"),
            Kind::Day => f.write_str("date"),
            Kind::List(element) => write!(f, "list<{element}>"),
            Kind::Struct(fields) => {
                f.write_str("struct<")?;
                for (at, (name, kind)) in fields.iter().enumerate() {
                    write!(f, "{}{name}: {kind}", if at == 0 { "" } else { ", " })?;
                }
                f.write_str(">")
            }
        }
    }
}

/// The schema of a table, partition columns last.
pub fn schema(table: TableName) -> Arc<Schema> {
    Arc::new(Schema::new(Fields::from_iter(table.columns().iter().map(
        |column| Field::new(column.name, column.kind.to_arrow(), !column.required),
    ))))
}

/// Why a table found on disk cannot be written by this version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// A known column has another type.
    #[error(
        "column `{column}` is {found} and not {expected}; rename it, or give another folder for the lake"
    )]
    Type {
        column: String,
        found: String,
        expected: String,
    },
    /// A column that is not ours must be filled.
    #[error(
        "column `{column}` is not known to this version and may not be null; make it nullable, or use the version that added it"
    )]
    Foreign { column: String },
    /// A column that we may leave null must be filled there.
    #[error(
        "column `{column}` is NOT NULL in the table, but rows may lack it; make it nullable, or give another folder for the lake"
    )]
    Required { column: String },
    /// Partitioned otherwise.
    #[error(
        "it is partitioned by {found:?} and not by {expected:?}; give another folder for the lake"
    )]
    Partitions {
        found: Vec<String>,
        expected: Vec<String>,
    },
}

/// Compares a table on disk with ours: the columns to add to it (nullable, since old files lack them), or why not.
///
/// # Errors
/// See [`Mismatch`].
pub fn reconcile(
    table: TableName,
    found: &Schema,
    partitions: &[String],
) -> Result<Vec<Field>, Mismatch> {
    if partitions != table.partitions() {
        return Err(Mismatch::Partitions {
            found: partitions.to_vec(),
            expected: table.partitions().iter().map(|p| (*p).to_owned()).collect(),
        });
    }
    let ours = schema(table);
    for theirs in found.fields() {
        let column = theirs.name().clone();
        match ours.field_with_name(theirs.name()) {
            Err(_) if theirs.is_nullable() => {}
            Err(_) => return Err(Mismatch::Foreign { column }),
            Ok(known) if !same_type(known.data_type(), theirs.data_type()) => {
                return Err(Mismatch::Type {
                    column,
                    found: theirs.data_type().to_string(),
                    expected: known.data_type().to_string(),
                });
            }
            Ok(known) if known.is_nullable() && !theirs.is_nullable() => {
                return Err(Mismatch::Required { column });
            }
            Ok(_) => {}
        }
    }
    Ok(ours
        .fields()
        .iter()
        .filter(|field| found.field_with_name(field.name()).is_err())
        .map(|field| field.as_ref().clone().with_nullable(true))
        .collect())
}

/// Equal types; what other writers name list elements, and whether those may be null, does not matter to a
/// reader, who goes by position inside a list.
fn same_type(ours: &DataType, theirs: &DataType) -> bool {
    match (ours, theirs) {
        (DataType::List(a), DataType::List(b)) => same_type(a.data_type(), b.data_type()),
        (DataType::Struct(a), DataType::Struct(b)) => {
            a.len() == b.len()
                && a.iter()
                    .zip(b)
                    .all(|(a, b)| a.name() == b.name() && same_type(a.data_type(), b.data_type()))
        }
        (a, b) => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_columns_are_the_ones_in_code() {
        let published: serde_json::Value = serde_json::from_str(include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/schemas/tables.json"
        )))
        .unwrap();
        let tables = TableName::ALL.map(|table| {
            let columns: Vec<_> = table
                .columns()
                .iter()
                .map(|c| {
                    serde_json::json!({"name": c.name, "type": c.kind.to_string(), "nullable": !c.required})
                })
                .collect();
            serde_json::json!({
                "name": table.as_str(),
                "partitionedBy": table.partitions(),
                "sortedBy": table.sorted_by(),
                "columns": columns,
            })
        });
        let code = serde_json::json!({ "tables": tables });
        assert_eq!(
            published, code,
            "schemas/tables.json differs from the code, which says:\n{code:#}"
        );
    }

    #[test]
    fn every_name_in_a_list_is_a_column() {
        for table in TableName::ALL {
            let schema = schema(table);
            let lists = [table.partitions(), table.sorted_by(), table.pruned_by()];
            for name in lists.into_iter().flatten() {
                assert!(schema.field_with_name(name).is_ok(), "{table}.{name}");
            }
            let last: Vec<_> = table.columns()[table.columns().len() - table.partitions().len()..]
                .iter()
                .map(|c| c.name)
                .collect();
            assert_eq!(last, table.partitions(), "{table}");
        }
    }

    fn check(change: impl FnOnce(&mut Vec<Field>), expected: Result<Vec<&str>, &str>) {
        let table = TableName::Conversations;
        let mut fields: Vec<Field> = schema(table)
            .fields()
            .iter()
            .map(|f| f.as_ref().clone())
            .collect();
        change(&mut fields);
        let found = reconcile(table, &Schema::new(fields), &["date".to_owned()]);
        match (found, expected) {
            (Ok(added), Ok(names)) => {
                assert_eq!(added.iter().map(|f| f.name()).collect::<Vec<_>>(), names);
                assert!(added.iter().all(Field::is_nullable));
            }
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (found, expected) => panic!("{found:?} and not {expected:?}"),
        }
    }

    #[test]
    fn a_table_is_taken_over_or_refused() {
        check(|_| {}, Ok(vec![]));
        check(
            |f| f.retain(|f| f.name() != "api_calls"),
            Ok(vec!["api_calls"]),
        );
        check(
            |f| f.push(Field::new("theirs", DataType::Int32, true)),
            Ok(vec![]),
        );
        check(
            |f| f.push(Field::new("theirs", DataType::Int32, false)),
            Err("`theirs` is not known"),
        );
        check(
            |f| f[0] = Field::new("conversation_id", DataType::Int64, false),
            Err("`conversation_id` is Int64 and not Utf8"),
        );
        check(
            |f| {
                let at = f.iter().position(|f| f.name() == "name").unwrap();
                f[at] = f[at].clone().with_nullable(false);
            },
            Err("`name` is NOT NULL"),
        );
        let error = reconcile(TableName::Events, &schema(TableName::Events), &[]).unwrap_err();
        assert!(error.to_string().contains("partitioned by []"), "{error}");
    }
}
