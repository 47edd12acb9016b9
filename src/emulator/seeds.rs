//! Seeded choices: the generator of each purpose, and ids that only a seed decides.
//!
//! Owns what a seed means. Refuses time and addresses in memory as sources, so that two runs of one seed
//! make the same ids, texts and choices, whatever happens between.
//!
//! Guarantees: each purpose has its own ChaCha stream (`rand_chacha` keeps its values over releases), so a
//! new purpose does not change what the others draw.

use std::sync::Arc;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Stream of ids that requests over REST get; conversations of the traffic count from 0.
pub(crate) const REST_STREAM: u64 = u64::MAX;
/// Stream of the order in which conversations' steps are taken.
pub(crate) const ORDER_STREAM: u64 = u64::MAX - 1;
/// Stream of a profile's id, whose seed is its store and address.
pub(crate) const PROFILE_STREAM: u64 = u64::MAX - 2;
/// Stream of what one message or call draws.
pub(crate) const INGEST_STREAM: u64 = u64::MAX - 3;

/// Stream of the distances between starts.
pub(crate) const ARRIVAL_STREAM: u64 = u64::MAX - 2;

/// The generator of `stream` under `seed`.
pub(crate) fn generator(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    generator.set_stream(stream);
    generator
}

/// SplitMix64's finaliser over both numbers: a choice by value, where keeping a generator has no place.
pub(crate) fn mix(seed: u64, value: u64) -> u64 {
    let mut z = seed
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(value)
        .wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The same for a text, such as an id.
pub(crate) fn mix_text(seed: u64, text: &str) -> u64 {
    text.as_bytes().chunks(8).fold(seed, |hash, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        mix(hash, u64::from_le_bytes(word))
    })
}

/// Whether a choice with this probability falls; `draw` is a number of [`mix`].
pub(crate) fn falls(draw: u64, probability: f64) -> bool {
    // 53 bits, as many as an f64 has, uniform in 0..1.
    ((draw >> 11) as f64) / ((1_u64 << 53) as f64) < probability
}

/// An id as Twilio makes them now: `conv_<kind>_` and 26 characters of Crockford's base 32.
pub(crate) fn id(kind: &str, random: &mut ChaCha8Rng) -> Arc<str> {
    const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    let mut id = String::with_capacity("conv_".len() + kind.len() + 1 + 26);
    id.push_str("conv_");
    id.push_str(kind);
    id.push('_');
    let bits: u128 = random.random();
    // 26 × 5 = 130 bits: the first character holds the two that are missing, as in a ULID.
    for place in (0..26).rev() {
        id.push(char::from(ALPHABET[((bits >> (5 * place)) & 31) as usize]));
    }
    id.into()
}

/// A classic SID: two letters and 32 hex digits.
pub(crate) fn sid(prefix: &str, random: &mut ChaCha8Rng) -> String {
    format!("{prefix}{:032x}", random.random::<u128>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_their_shape_and_repeat_with_the_seed() {
        let first = id("conversation", &mut generator(7, 3));
        assert_eq!(first, id("conversation", &mut generator(7, 3)));
        assert_ne!(first, id("conversation", &mut generator(7, 4)));
        assert_ne!(first, id("conversation", &mut generator(8, 3)));
        assert_eq!(first.len(), "conv_conversation_".len() + 26);
        assert_eq!(sid("CH", &mut generator(7, 3)).len(), 34);
    }

    #[test]
    fn a_probability_is_met() {
        let hits = (0..10_000).filter(|&i| falls(mix(1, i), 0.1)).count();
        assert!((900..1100).contains(&hits), "{hits}");
        assert!(!falls(0, 0.0), "never");
        assert!(falls(u64::MAX, 1.0), "always");
    }
}
