//! Guards that a build with the feature `sabotage` can take out, to prove that the fault matrix would notice.
//!
//! Owns the choice (`CONVOLAKE_SABOTAGE`, one of [`ALL`]) and nothing of what it does: each is a few lines at
//! the guard's own place. Refuses to be overlooked: such a build says so in `--version` and with every start.
//! The feature is in no default and in no release; without it this file is not compiled.

use std::collections::HashSet;
use std::sync::{Mutex, OnceLock, PoisonError};

use hyper::HeaderMap;

use super::Invalid;

/// One guard that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// 2xx before Kafka has acknowledged.
    EarlyAnswer,
    /// No fsync of the spool.
    SpoolSync,
    /// The archive's position is committed before its rows.
    EarlyPosition,
    /// Positions are not compared at a commit.
    Positions,
    /// The hash of the body is not compared.
    BodyHash,
    /// A token that was seen before is a callback that was seen before.
    TokenAlone,
    /// 2xx before Kafka has acknowledged, and the producer is dropped without a flush.
    Flush,
    /// No fsync of the lake's files and folders.
    LakeSync,
}

/// Every choice, by its value of `CONVOLAKE_SABOTAGE`.
pub const ALL: [(&str, Sabotage); 8] = [
    ("s1", Sabotage::EarlyAnswer),
    ("s2", Sabotage::SpoolSync),
    ("s3", Sabotage::EarlyPosition),
    ("s4", Sabotage::Positions),
    ("s5", Sabotage::BodyHash),
    ("s6", Sabotage::TokenAlone),
    ("s7", Sabotage::Flush),
    ("s8", Sabotage::LakeSync),
];

static CHOSEN: OnceLock<Option<Sabotage>> = OnceLock::new();

/// Takes the choice of the environment, once.
///
/// # Errors
/// The value is none of [`ALL`].
pub(super) fn choose(value: Option<String>) -> Result<(), Invalid> {
    let chosen = match value.as_deref() {
        None | Some("") => None,
        Some(name) => {
            let known = ALL.iter().find(|(known, _)| *known == name);
            let (_, sabotage) = known
                .ok_or_else(|| Invalid(format!("CONVOLAKE_SABOTAGE: s1 to s8, not {name:?}")))?;
            Some(*sabotage)
        }
    };
    // Tests of `config` load more than once; the first choice stays.
    CHOSEN.get_or_init(|| chosen);
    Ok(())
}

/// Whether this guard is taken out.
pub fn is(sabotage: Sabotage) -> bool {
    chosen() == Some(sabotage)
}

/// The guard that is taken out.
pub fn chosen() -> Option<Sabotage> {
    CHOSEN.get().copied().flatten()
}

/// Whether a request's idempotency token was there before, for [`Sabotage::TokenAlone`].
pub fn token_seen(headers: &HeaderMap) -> bool {
    static SEEN: Mutex<Option<HashSet<Vec<u8>>>> = Mutex::new(None);
    let Some(token) = headers.get("i-twilio-idempotency-token") else {
        return false;
    };
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    !seen
        .get_or_insert_default()
        .insert(token.as_bytes().to_vec())
}
