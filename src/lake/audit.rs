//! The lake looked at file by file, for those who check it or mend it.
//!
//! Owns what a whole data file is: there, as long as the log says, with a footer that can be read and the rows
//! that the log counts. Its content is judged by whoever reads it; a page that was changed shows there, as an
//! error that names the file.
//!
//! Everything here can leave files out, so that a damaged one hides nothing but its own rows.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use arrow::array::RecordBatch;
use parquet::file::metadata::ParquetMetaDataReader;

use crate::table::TableName;
use crate::table::row::Days;

use super::live::LiveFile;
use super::{Batches, LakeError, Table, blocking, read};

/// A live data file.
#[derive(Debug, Clone)]
pub struct DataFile(Arc<LiveFile>);

impl DataFile {
    /// As in the log: relative to the table's folder, percent-encoded.
    pub fn path(&self) -> &str {
        &self.0.path
    }

    /// Rows that the log counts.
    pub fn rows(&self) -> u64 {
        self.0.rows
    }

    /// The day of its rows.
    pub fn date(&self) -> Days {
        self.0.partition.date
    }

    /// Smallest and largest conversation id (at least), where the log has them.
    pub fn conversations(&self) -> Option<(&str, &str)> {
        let (smallest, largest) = self.0.ids.as_ref()?;
        Some((smallest, largest))
    }

    /// Smallest and largest Kafka partition of its rows, and smallest and largest offset, where the log has them.
    pub fn kafka(&self) -> Option<((i32, i32), (i64, i64))> {
        self.0.kafka
    }
}

impl Table {
    /// The live files of the newest version, by partition.
    ///
    /// # Errors
    /// I/O.
    pub async fn files(&self) -> Result<Vec<DataFile>, LakeError> {
        let state = self.0.clone();
        blocking(move || {
            let files = state.refresh()?.files();
            Ok(files.into_iter().map(DataFile).collect())
        })
        .await
    }

    /// The rows of one file, with these columns in this order, as [`Table::read`] gives them.
    ///
    /// # Errors
    /// [`LakeError::Invalid`] for a column that is not one of ours.
    pub fn read_file(&self, file: &DataFile, columns: &[&str]) -> Result<Batches, LakeError> {
        let columns = read::columns(self.name(), columns)?;
        let folder = self.0.folder().to_owned();
        let files = vec![Arc::clone(&file.0)];
        Ok(Batches::start(self.name(), folder, files, columns))
    }

    /// What is wrong with a file as a file, in words; `None`: it is whole, or gone from the newest version.
    ///
    /// # Errors
    /// I/O on the log.
    pub async fn damage(&self, file: &DataFile) -> Result<Option<String>, LakeError> {
        let (state, file) = (self.0.clone(), Arc::clone(&file.0));
        let found = blocking({
            let (state, file) = (state.clone(), Arc::clone(&file));
            move || Ok(damage(&file.location(state.folder()), &file))
        });
        let found = match found.await {
            // The Parquet reader panics on some footers (arrow-rs issue 9705).
            Err(LakeError::Ended(error)) if error.is_panic() => {
                Some("its footer makes no sense".to_owned())
            }
            other => other?,
        };
        if found.is_none() {
            return Ok(None);
        }
        // It may have been replaced, and cleaned up, since it was listed.
        let live = blocking(move || Ok(state.refresh()?.is_live(&file.path))).await?;
        Ok(found.filter(|_| live))
    }

    /// All rows of some conversations in the newest version, with these columns in this order; `except` are
    /// paths of files that are not looked at.
    ///
    /// # Errors
    /// I/O: [`LakeError::File`] names the file.
    pub async fn rows_of(
        &self,
        conversations: &[String],
        columns: &[&str],
        except: &BTreeSet<String>,
    ) -> Result<Vec<RecordBatch>, LakeError> {
        let columns = read::columns(self.name(), columns)?;
        let (state, ids, except) = (self.0.clone(), conversations.to_vec(), except.clone());
        blocking(move || {
            let view = state.refresh()?.without(&except);
            let mut rows = Vec::new();
            for (file, ids) in state.find(&view, &ids, None)? {
                let batches =
                    read::open(state.table(), state.folder(), &file, &columns, Some(ids))?;
                for batch in batches {
                    rows.push(batch?);
                }
            }
            Ok(rows)
        })
        .await
    }

    /// Which live file an error of reading was about.
    ///
    /// # Errors
    /// I/O on the log.
    pub async fn file_at(&self, path: &Path) -> Result<Option<DataFile>, LakeError> {
        let (state, path) = (self.0.clone(), path.to_owned());
        blocking(move || {
            let files = state.refresh()?.files();
            let found = files
                .into_iter()
                .find(|file| file.location(state.folder()) == path);
            Ok(found.map(DataFile))
        })
        .await
    }

    /// The columns of the table, in its order.
    pub fn columns(&self) -> Vec<&'static str> {
        columns(self.name())
    }
}

fn columns(table: TableName) -> Vec<&'static str> {
    table.columns().iter().map(|column| column.name).collect()
}

fn damage(path: &Path, file: &LiveFile) -> Option<String> {
    let opened = match File::open(path) {
        Ok(opened) => opened,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Some("it does not exist".to_owned());
        }
        Err(error) => return Some(format!("it cannot be opened: {error}")),
    };
    let bytes = match opened.metadata() {
        Ok(metadata) => metadata.len(),
        Err(error) => return Some(format!("it cannot be looked at: {error}")),
    };
    if bytes != file.bytes {
        return Some(format!("it has {bytes} bytes, the log says {}", file.bytes));
    }
    match ParquetMetaDataReader::new().parse_and_finish(&opened) {
        Err(error) => Some(format!("its footer cannot be read: {error}")),
        Ok(footer) => {
            let rows = u64::try_from(footer.file_metadata().num_rows()).unwrap_or(0);
            // Somebody else's file may be without statistics.
            let counted = file.rows > 0 && rows != file.rows;
            counted.then(|| format!("it has {rows} rows, the log says {}", file.rows))
        }
    }
}
