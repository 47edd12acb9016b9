//! One assigned partition: records finish in any order and leave in theirs.
//!
//! Owns the invariant that the position moves only over finished records: a slot is reserved when a record
//! is read, filled when its work ends, and taken from the front. Holds each record, and so its share of the
//! bytes in flight, until it is durable.
//!
//! Pure: no I/O, no clock.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::topic::Record;

/// A record's place in its partition.
#[derive(Debug)]
pub struct Slot<Row> {
    offset: i64,
    state: State<Row>,
    /// Bytes that the row holds, 0 without one.
    weight: usize,
    record: Option<Arc<Record>>,
}

#[derive(Debug)]
enum State<Row> {
    Unfinished,
    /// Boxed: most records become nothing, and their slots may wait behind an unfinished one.
    Finished(Option<Box<Row>>),
}

impl<Row> Slot<Row> {
    /// A place for the record at `offset`.
    pub fn new(offset: i64) -> Self {
        Slot {
            offset,
            state: State::Unfinished,
            weight: 0,
            record: None,
        }
    }

    fn is_finished(&self) -> bool {
        matches!(self.state, State::Finished(_))
    }
}

/// What was taken for a commit.
#[derive(Debug)]
pub struct Taken<Row> {
    /// Rows, in the order of their records.
    pub rows: Vec<Row>,
    /// Their weight.
    pub weight: usize,
    /// The offset after the last record taken.
    pub next_offset: i64,
    /// Records taken that had not been counted as passed.
    pub records: u64,
    /// The records, let go when the commit is done.
    held: Vec<Arc<Record>>,
}

/// The state of one assignment of one partition.
#[derive(Debug)]
pub struct Partition<Row> {
    app: String,
    generation: u64,
    /// Where the lake is.
    committed: Option<i64>,
    /// Where the records in `slots` begin: everything before is taken or needs nothing.
    next: Option<i64>,
    slots: VecDeque<Slot<Row>>,
    /// How many slots at the front are finished.
    ready: usize,
    ready_rows: usize,
    ready_weight: usize,
    ready_held_bytes: usize,
    /// Records whose commit is on its way.
    in_commit: Vec<Arc<Record>>,
    /// The last record that became a dead letter, until the lake's position is behind it.
    letter: Option<i64>,
}

impl<Row> Partition<Row> {
    /// A partition that was just assigned and reads on from `start`.
    pub fn new(app: String, generation: u64, start: Option<i64>) -> Self {
        Partition::behind(app, generation, start, start)
    }

    /// The same where the lake stands at `committed`, and what lies between is passed over.
    pub fn behind(
        app: String,
        generation: u64,
        committed: Option<i64>,
        start: Option<i64>,
    ) -> Self {
        Partition {
            app,
            generation,
            committed,
            next: start,
            slots: VecDeque::new(),
            ready: 0,
            ready_rows: 0,
            ready_weight: 0,
            ready_held_bytes: 0,
            in_commit: Vec::new(),
            letter: None,
        }
    }

    /// The name of its position in the Delta log.
    pub fn app(&self) -> &str {
        &self.app
    }

    /// Which assignment this is; results of another are dropped.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Records before this are passed, or their commit is on its way; `None` before the first.
    pub fn stands(&self) -> Option<i64> {
        self.committed.max(self.next)
    }

    /// The record at `offset` is a dead letter: until the position is behind it in the lake, whoever reads
    /// on from there sets it aside again.
    pub fn set_aside(&mut self, offset: i64) {
        self.letter = self.letter.max(Some(offset));
    }

    /// Whether a dead letter waits for the position.
    pub fn has_letter(&self) -> bool {
        self.letter.is_some()
    }

    /// Whether a commit now has something that must not wait long: rows, or the position of a dead letter.
    pub fn is_due(&self) -> bool {
        let end = match self.ready.checked_sub(1) {
            Some(last) => Some(self.slots[last].offset + 1),
            None => self.next,
        };
        self.ready_rows > 0 || self.letter.is_some_and(|letter| end > Some(letter))
    }

    /// Rows that a commit could take now.
    pub fn ready_rows(&self) -> usize {
        self.ready_rows
    }

    /// Their weight.
    pub fn ready_weight(&self) -> usize {
        self.ready_weight
    }

    /// Places that are taken.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Where the lake stands: what the next commit of this partition starts from.
    pub fn committed_at(&self) -> Option<i64> {
        self.committed
    }

    /// Bytes of records that a commit would set free.
    pub fn ready_held_bytes(&self) -> usize {
        self.ready_held_bytes
    }

    /// Reserves a place.
    pub fn push(&mut self, slot: Slot<Row>) {
        debug_assert!(
            self.slots
                .back()
                .is_none_or(|last| last.offset < slot.offset),
            "records come in order"
        );
        self.slots.push_back(slot);
    }

    /// Keeps the record until it is durable.
    pub fn hold(&mut self, record: Arc<Record>) {
        if let Some(index) = self.index_of(record.offset) {
            self.slots[index].record = Some(record);
        }
    }

    /// Fills a place with what became of its record, and the bytes that holds. Answers how many records need
    /// nothing durable any more and were passed at once.
    pub fn finish(&mut self, offset: i64, row: Option<(Row, usize)>) -> u64 {
        let Some(index) = self.index_of(offset) else {
            return 0;
        };
        let slot = &mut self.slots[index];
        let (row, weight) = row.unzip();
        slot.weight = weight.unwrap_or(0);
        slot.state = State::Finished(row.map(Box::new));
        if matches!(slot.state, State::Finished(None)) {
            slot.record = None;
        }
        while let Some(slot) = self.slots.get(self.ready).filter(|slot| slot.is_finished()) {
            self.ready_rows += usize::from(matches!(slot.state, State::Finished(Some(_))));
            self.ready_weight += slot.weight;
            self.ready_held_bytes += slot.record.as_ref().map_or(0, |record| record.share());
            self.ready += 1;
        }
        self.pass_what_needs_nothing()
    }

    /// Takes every finished record at the front; `None` where the position would not move.
    pub fn take_ready(&mut self) -> Option<Taken<Row>> {
        let mut taken = Taken {
            rows: Vec::with_capacity(self.ready_rows),
            weight: std::mem::take(&mut self.ready_weight),
            next_offset: 0,
            records: 0,
            held: Vec::new(),
        };
        for slot in self.slots.drain(..self.ready) {
            self.next = Some(slot.offset + 1);
            taken.records += 1;
            taken.held.extend(slot.record);
            match slot.state {
                State::Finished(row) => taken.rows.extend(row.map(|row| *row)),
                State::Unfinished => unreachable!("only finished slots are counted as ready"),
            }
        }
        (self.ready, self.ready_rows, self.ready_held_bytes) = (0, 0, 0);
        if self.next == self.committed {
            return None;
        }
        taken.next_offset = self.next?;
        self.in_commit.append(&mut taken.held);
        Some(taken)
    }

    /// The commit up to `next_offset` is durable.
    pub fn committed(&mut self, next_offset: i64) {
        self.committed = Some(next_offset);
        self.letter = self.letter.filter(|letter| *letter >= next_offset);
        self.in_commit.clear();
    }

    /// Weight of the rows that wait here.
    pub fn finished_weight(&self) -> usize {
        self.slots.iter().map(|slot| slot.weight).sum()
    }

    fn pass_what_needs_nothing(&mut self) -> u64 {
        let mut passed = 0;
        while self.ready > 0 && matches!(self.slots[0].state, State::Finished(None)) {
            let slot = self.slots.pop_front().expect("ready counts slots");
            self.next = Some(slot.offset + 1);
            self.ready -= 1;
            passed += 1;
        }
        passed
    }

    fn index_of(&self, offset: i64) -> Option<usize> {
        self.slots
            .binary_search_by_key(&offset, |slot| slot.offset)
            .ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn partition(start: Option<i64>, offsets: &[i64]) -> Partition<i64> {
        let mut partition = Partition::new("app".into(), 1, start);
        for offset in offsets {
            partition.push(Slot::new(*offset));
        }
        partition
    }

    #[test]
    fn a_row_waits_for_the_records_before_it() {
        let mut partition = partition(Some(5), &[5, 6, 9]);
        assert_eq!(partition.finish(9, Some((9, 1))), 0);
        assert_eq!(partition.finish(6, Some((6, 1))), 0);
        assert!(partition.take_ready().is_none());
        partition.finish(5, Some((5, 1)));
        let taken = partition.take_ready().unwrap();
        assert_eq!(
            (taken.rows, taken.next_offset, taken.records),
            (vec![5, 6, 9], 10, 3)
        );
    }

    #[test]
    fn records_that_become_nothing_pass_without_a_commit() {
        let mut partition = partition(None, &[0, 1, 2]);
        assert_eq!(partition.finish(1, None), 0);
        assert_eq!(partition.finish(0, None), 2);
        partition.finish(2, Some((2, 1)));
        let taken = partition.take_ready().unwrap();
        assert_eq!((taken.next_offset, taken.records), (3, 1));
    }

    #[test]
    fn a_position_that_only_passed_is_taken_too() {
        let mut partition = partition(Some(0), &[0]);
        partition.finish(0, None);
        assert_eq!(partition.take_ready().unwrap().next_offset, 1);
        partition.committed(1);
        assert!(partition.take_ready().is_none());
    }

    #[test]
    fn a_dead_letter_is_due_until_the_position_is_behind_it() {
        let mut partition = partition(Some(0), &[0, 1]);
        partition.finish(1, None);
        partition.set_aside(1);
        assert!(partition.has_letter() && !partition.is_due());
        partition.finish(0, None);
        assert!(partition.is_due());
        assert_eq!(partition.take_ready().unwrap().next_offset, 2);
        partition.committed(2);
        assert!(!partition.has_letter() && !partition.is_due());
    }

    proptest! {
        #[test]
        fn in_any_order_each_row_is_taken_once_and_never_before_its_predecessors(
            order in Just((0..40i64).collect::<Vec<_>>()).prop_shuffle(),
            nothing in prop::collection::hash_set(0..40i64, 0..40),
            flush_after in prop::collection::vec(any::<bool>(), 40),
        ) {
            let mut partition = partition(None, &(0..40).collect::<Vec<_>>());
            let mut finished = std::collections::HashSet::new();
            let mut rows = Vec::new();
            for (offset, flush) in order.into_iter().zip(flush_after) {
                finished.insert(offset);
                partition.finish(offset, (!nothing.contains(&offset)).then_some((offset, 1)));
                if flush && let Some(taken) = partition.take_ready() {
                    prop_assert!((0..taken.next_offset).all(|before| finished.contains(&before)));
                    rows.extend(taken.rows);
                    partition.committed(taken.next_offset);
                }
            }
            rows.extend(partition.take_ready().into_iter().flat_map(|taken| taken.rows));
            let want: Vec<i64> = (0..40).filter(|offset| !nothing.contains(offset)).collect();
            prop_assert_eq!(rows, want);
        }
    }
}
