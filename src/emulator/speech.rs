//! What an engine makes of an utterance: one transcription, or the fragments of an answer.
//!
//! Owns where an answer is cut: ConversationRelay writes each fragment that text-to-speech is given as a
//! communication of its own, 3 to 5 of them. Refuses to know who speaks and where it is written.
//!
//! Guarantees: the words of all parts, in order, are the words of the utterance; their times lie in the
//! utterance's span, in order; the cuts depend on the generator alone.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::resource::{Content, ContentType, Transcription, Word};

/// Fragments of one answer.
pub(crate) const FRAGMENTS: std::ops::RangeInclusive<usize> = 3..=5;

/// How an utterance is heard.
#[derive(Debug, Clone)]
pub(crate) struct Hearing<'a> {
    /// 0 inbound, 1 outbound.
    pub(crate) channel: u8,
    pub(crate) engine: &'a Arc<str>,
    /// It is an answer that comes in fragments; one of fewer words comes in as many as it has.
    pub(crate) fragmented: bool,
}

/// The parts of `text`, said from `began` to `ended`, each with the time of its first word.
pub(crate) fn heard(
    text: &str,
    (began, ended): (Timestamp, Timestamp),
    hearing: &Hearing<'_>,
    random: &mut ChaCha8Rng,
) -> Vec<(Timestamp, Content)> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let span = ended.duration_since(began).as_millis();
    let count = words.len().max(1);
    // Spread evenly; how long a single word takes is nothing that anybody counts.
    let at = |word: usize| {
        let offset = span * i128::try_from(word).unwrap_or(i128::MAX) / count as i128;
        began + SignedDuration::from_millis(i64::try_from(offset).unwrap_or(i64::MAX))
    };
    let parts = match hearing.fragmented {
        true => random.random_range(FRAGMENTS).min(count),
        false => 1,
    };
    (0..parts)
        .map(|part| {
            let (first, last) = (part * words.len() / parts, (part + 1) * words.len() / parts);
            let timed = (first..last).map(|place| Word {
                text: words[place].into(),
                start_time: Some(at(place)),
                end_time: Some(at(place + 1)),
            });
            let transcription = Transcription {
                channel: Some(hearing.channel),
                confidence: Some(f64::from(random.random_range(500..1_000_u32)) / 1_000.0),
                engine: Some(Arc::clone(hearing.engine)),
                words: timed.collect(),
            };
            let content = Content {
                kind: ContentType::Transcription,
                text: match parts {
                    1 => text.into(),
                    _ => words[first..last].join(" ").into(),
                },
                transcription: Some(Box::new(transcription)),
            };
            (at(first), content)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emulator::seeds;

    const ANSWER: &str = "Your parcel left our house this morning and should reach you tomorrow.";

    fn parts(text: &str, fragmented: bool, seed: u64) -> Vec<(Timestamp, Content)> {
        let began = Timestamp::from_second(1_700_000_000).unwrap();
        let hearing = Hearing {
            channel: 1,
            engine: &"deepgram".into(),
            fragmented,
        };
        let mut random = seeds::generator(seed, 0);
        let span = (began, began + SignedDuration::from_secs(12));
        heard(text, span, &hearing, &mut random)
    }

    #[test]
    fn fact_2_an_answer_comes_in_three_to_five_fragments() {
        let mut counts = std::collections::BTreeSet::new();
        for seed in 0..50 {
            let parts = parts(ANSWER, true, seed);
            counts.insert(parts.len());
            let texts: Vec<&str> = parts.iter().map(|(_, content)| &*content.text).collect();
            assert_eq!(texts.join(" "), ANSWER);
            let times: Vec<Timestamp> = parts.iter().map(|(at, _)| *at).collect();
            assert!(times.is_sorted() && times[0] < times[1]);
        }
        assert_eq!(counts, (3..=5).collect());
        assert_eq!(
            parts(ANSWER, true, 7),
            parts(ANSWER, true, 7),
            "by the seed"
        );
    }

    #[test]
    fn anything_else_is_one_transcription() {
        let whole = parts(ANSWER, false, 1);
        assert_eq!(whole.len(), 1);
        let transcription = whole[0].1.transcription.as_ref().unwrap();
        assert_eq!(transcription.words.len(), 12);
        assert_eq!(transcription.engine.as_deref(), Some("deepgram"));
        assert_eq!(parts("Yes.", true, 1).len(), 1, "there is nothing to cut");
        let silence = parts("", true, 1);
        assert_eq!((silence.len(), &*silence[0].1.text), (1, ""));
    }
}
