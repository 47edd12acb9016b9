//! Why a conversation is fetched, and what follows from it: whether it is fetched at all, and what it replaces. Pure.

use std::time::Duration;

use jiff::Timestamp;

use crate::lake::Ledger;
use crate::table::row::ConversationRow;

/// Why a conversation is fetched; a later one may replace more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cause {
    /// It closed.
    Close,
    /// Something happened to it after its close.
    Late,
    /// What the lake has of it is damaged.
    Repair,
}

impl Cause {
    /// Whether a version fetched for this cause replaces what the lake has.
    pub(super) fn replaces(self, new: &ConversationRow, have: &Ledger) -> bool {
        let same = new.completeness == have.completeness;
        let richer = new.completeness > have.completeness;
        richer
            || match self {
                Cause::Close => false,
                Cause::Late => same && new.content_hash != have.content_hash,
                // The ledger may be true and the rows not.
                Cause::Repair => same,
            }
    }

    /// Whether a fetch that is not committed yet is as good as a new one for what was received at `received_at`.
    pub(super) fn is_covered(
        self,
        last: &Fetched,
        received_at: Timestamp,
        settle: Duration,
    ) -> bool {
        match self {
            Cause::Close => last.whole,
            Cause::Late | Cause::Repair => received_at
                .saturating_add(settle)
                .is_ok_and(|settled| last.began >= settled),
        }
    }
}

/// The last fetch of a conversation that waits for its commit.
#[derive(Debug)]
pub(super) struct Fetched {
    /// Nothing was missing.
    pub(super) whole: bool,
    /// When the first request of it was about to be sent.
    pub(super) began: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::row::{self, Completeness};

    #[test]
    fn a_later_version_replaces_as_much_as_its_cause_allows_and_never_a_richer_one() {
        use Completeness::{Complete, Gone, Partial};
        let version = |completeness, hash: &str| ConversationRow {
            completeness,
            content_hash: hash.to_owned(),
            ..row::empty_conversation("v")
        };
        let have = Ledger {
            completeness: Partial,
            content_hash: "old".to_owned(),
        };
        for (cause, same, changed) in [
            (Cause::Close, false, false),
            (Cause::Late, false, true),
            (Cause::Repair, true, true),
        ] {
            assert!(
                cause.replaces(&version(Complete, "new"), &have),
                "{cause:?}"
            );
            assert!(!cause.replaces(&version(Gone, "new"), &have), "{cause:?}");
            assert_eq!(
                cause.replaces(&version(Partial, "old"), &have),
                same,
                "{cause:?}"
            );
            assert_eq!(
                cause.replaces(&version(Partial, "new"), &have),
                changed,
                "{cause:?}"
            );
        }
    }

    #[test]
    fn a_fetch_that_began_after_a_late_callback_settled_covers_it() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let last = |whole| Fetched {
            whole,
            began: at(10),
        };
        let settle = Duration::from_secs(2);
        for received in [1, 20] {
            assert!(Cause::Close.is_covered(&last(true), at(received), settle));
            assert!(!Cause::Close.is_covered(&last(false), at(received), settle));
        }
        for cause in [Cause::Late, Cause::Repair] {
            for (received, covered) in [(7, true), (8, true), (9, false), (20, false)] {
                assert_eq!(cause.is_covered(&last(true), at(received), settle), covered);
            }
        }
    }
}
