//! Positions against rows, by the lake alone, and which callbacks a damaged file took with it.
//!
//! Every commit of the archive moves a partition's position past the rows that it brings, so no row lies at or behind its
//! position: it would be written again. Rows do not say which group or cluster they are of; where several wrote one lake, the
//! furthest of their positions counts. An offset without a row is none of ours to judge (dead letters and our own
//! closes have none), unless a damaged file is what held it by the log's bounds.
//!
//! Memory: the runs of offsets that rows have, which is one a partition where nothing is missing.

use std::collections::BTreeMap;

use arrow::array::AsArray;
use arrow::datatypes::{Int32Type, Int64Type};

use super::{Report, column};
use crate::lake::{Lake, LakeError};
use crate::table::TableName;
use crate::topic::Gap;

/// Names positions of `events` that lie before a row, and the offsets that damaged files of it held.
pub(super) async fn check(lake: &Lake, report: &mut Report) -> Result<(), LakeError> {
    let table = lake.table(TableName::Events);
    let damaged = report.damaged_paths();
    let mut runs: BTreeMap<i32, Runs> = BTreeMap::new();
    let mut lost = Vec::new();
    let columns = ["kafka_partition", "kafka_offset"];
    for file in table.files().await? {
        if damaged.contains(file.path()) {
            lost.push(file);
            continue;
        }
        let mut batches = table.read_file(&file, &columns)?;
        while let Some(batch) = batches.next().await.transpose()? {
            let partitions = column(&batch, columns[0]).as_primitive::<Int32Type>();
            let offsets = column(&batch, columns[1]).as_primitive::<Int64Type>();
            for row in 0..batch.num_rows() {
                let runs = runs.entry(partitions.value(row)).or_default();
                runs.add(offsets.value(row));
            }
        }
    }
    // After the rows: positions only grow.
    let mut positions: BTreeMap<i32, i64> = BTreeMap::new();
    for (app, position) in table.all_positions().await? {
        // `…/<partition>`; what ends otherwise is a topic's id, or the name of a commit.
        let partition = app.rsplit_once('/').and_then(|(_, last)| last.parse().ok());
        if let Some(partition) = partition {
            let furthest = positions.entry(partition).or_insert(position);
            *furthest = position.max(*furthest);
        }
    }
    for (partition, runs) in &runs {
        let position = positions.get(partition);
        if position < Some(&runs.end()) {
            let found = position.map_or("none".to_owned(), i64::to_string);
            report.positions.push(format!(
                "events, partition {partition}: the last row is of offset {}, the position is {found}",
                runs.end() - 1
            ));
        }
    }
    for file in lost {
        let bounds = file.kafka();
        let mut offsets = Vec::new();
        for (partition, position) in &positions {
            let ((least, most), (from, to)) =
                bounds.unwrap_or(((*partition, *partition), (0, *position - 1)));
            if (least..=most).contains(partition) {
                let none = Runs::default();
                let runs = runs.get(partition).unwrap_or(&none);
                let missing = runs.missing(from, (to + 1).min(*position));
                offsets.extend(missing.map(|(from, to)| Gap {
                    partition: *partition,
                    from,
                    to,
                }));
            }
        }
        let damage = report.damaged.iter_mut();
        if let Some(damage) = damage.into_iter().find(|it| it.path == file.path()) {
            damage.offsets = offsets;
        }
    }
    Ok(())
}

/// Offsets as runs that neither touch nor overlap: start and end.
#[derive(Debug, Default)]
struct Runs(BTreeMap<i64, i64>);

impl Runs {
    fn add(&mut self, offset: i64) {
        let before = self.0.range(..=offset).next_back();
        let start = match before {
            Some((_, end)) if *end > offset => return,
            Some((start, end)) if *end == offset => *start,
            _ => offset,
        };
        // The next run, where this offset closes what lay between.
        let end = self.0.remove(&(offset + 1)).unwrap_or(offset + 1);
        self.0.insert(start, end);
    }

    /// One past the last; 0 where there is none.
    fn end(&self) -> i64 {
        self.0.last_key_value().map_or(0, |(_, end)| *end)
    }

    /// What is not there of `from..to`.
    fn missing(&self, from: i64, to: i64) -> impl Iterator<Item = (i64, i64)> {
        let mut at = from;
        let runs = self.0.iter().map(|(start, end)| (*start, *end));
        runs.chain([(to, to)]).filter_map(move |(start, end)| {
            let gap = (at, start.min(to));
            at = at.max(end);
            (gap.0 < gap.1).then_some(gap)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn runs_are_what_was_added_and_gaps_are_the_rest(
            offsets in proptest::collection::vec(0i64..40, 0..60), from in 0i64..40, size in 0i64..40,
        ) {
            let mut runs = Runs::default();
            offsets.iter().for_each(|offset| runs.add(*offset));
            let (ends, starts) = (runs.0.values(), runs.0.keys().skip(1));
            prop_assert!(ends.zip(starts).all(|(end, start)| end < start), "{runs:?}");
            prop_assert_eq!(runs.end(), offsets.iter().max().map_or(0, |last| last + 1));
            let missing: Vec<i64> = runs.missing(from, from + size).flat_map(|(a, b)| a..b).collect();
            let want: Vec<i64> = (from..from + size).filter(|it| !offsets.contains(it)).collect();
            prop_assert_eq!(missing, want);
        }
    }
}
