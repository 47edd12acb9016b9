//! A run of a partition's offsets, as operators write and read it.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// Offsets of a partition, the last one excluded: written `PARTITION:FROM..TO`, as what reports them does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The partition.
    pub partition: i32,
    /// The first; of a gap that `ingest` is to pass over the lake's position, exactly, so that it is accepted once.
    pub from: i64,
    /// One past the last: where reading goes on.
    pub to: i64,
}

impl Gap {
    /// Whether a record's place is in it.
    pub fn has(&self, partition: i32, offset: i64) -> bool {
        self.partition == partition && (self.from..self.to).contains(&offset)
    }

    /// How many offsets.
    pub fn offsets(&self) -> u64 {
        self.from.abs_diff(self.to)
    }
}

impl FromStr for Gap {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (partition, range) = text.split_once(':')?;
            let (from, to) = range.split_once("..")?;
            let gap = Gap {
                partition: partition.parse().ok()?,
                from: from.parse().ok()?,
                to: to.parse().ok()?,
            };
            (gap.partition >= 0 && 0 <= gap.from && gap.from < gap.to).then_some(gap)
        };
        parse().ok_or("write PARTITION:FROM..TO, as what reported it does")
    }
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}..{}", self.partition, self.from, self.to)
    }
}

impl Serialize for Gap {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
