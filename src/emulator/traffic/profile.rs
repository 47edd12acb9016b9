//! What a run's traffic is like: a file with channels, lengths, languages, arrival.
//!
//! Owns the file's fields, their ranges, and each draw that they decide. What a file leaves out is as
//! without a profile: channels by turns, mostly short conversations, every language, starts spread evenly.
//! `schemas/traffic-profile.schema.json` describes the file; a test compares the two.
//!
//! Guarantees: draws are made of whole numbers, so that a seed and a profile mean the same conversations on
//! every machine.
//!
//! Fails with [`InvalidProfile`], which names the line or the field.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::Timestamp;
use rand::Rng;
use rand::distr::Distribution;
use rand::distr::weighted::WeightedIndex;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::super::resource::Channel;
use super::super::texts;
use super::cast::CHANNELS;
use super::{MAX_ORDINARY, START_WINDOW_MS};

/// Most communications that a profile can ask of one conversation.
pub(crate) const MAX_PROFILE_COMMUNICATIONS: usize = 10_000;
/// Largest weight.
pub(crate) const MAX_WEIGHT: u32 = 1_000_000;
/// Hours of a day.
const HOURS: usize = 24;
const HOUR_MS: i64 = 3_600_000;

/// What traffic is like.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Profile {
    /// Weights of the channel that a conversation begins on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    channels: Option<BTreeMap<Channel, u32>>,
    /// Per cent of conversations that have a second channel, of those with a weight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    several_channels_percent: Option<u32>,
    /// How many communications a conversation has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    communications: Option<Lengths>,
    /// Weights of languages, by their ISO 639-1 codes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    languages: Option<BTreeMap<String, u32>>,
    /// When conversations begin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    arrival: Option<Arrival>,
}

/// Half of the conversations are as long as `typical` or shorter.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Lengths {
    shortest: usize,
    typical: usize,
    longest: usize,
}

/// When conversations begin.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Arrival {
    /// Weights of the hours of a day, in UTC, by which the times of finite traffic are drawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hours: Option<Vec<u32>>,
    /// How `--rate` is kept: at even distances, or by chance as independent callers do.
    #[serde(default)]
    spacing: Spacing,
}

/// The distance between two starts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Spacing {
    #[default]
    Even,
    Random,
}

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InvalidProfile {
    /// Not TOML, or a field that is not as documented.
    #[error("{0}")]
    Toml(#[from] toml::de::Error),
    /// Not JSON, or a field that is not as documented.
    #[error("{0}")]
    Json(#[from] serde_path_to_error::Error<serde_json::Error>),
    /// A value out of its range.
    #[error("{field}: {problem}")]
    Field {
        /// Its path.
        field: String,
        /// What it has to be.
        problem: String,
    },
}

impl Profile {
    /// Reads the text of `file`: JSON where its name ends so, TOML else.
    ///
    /// # Errors
    /// Each of [`InvalidProfile`].
    pub fn parse(file: &Path, text: &str) -> Result<Self, InvalidProfile> {
        let profile: Profile = if file.extension().is_some_and(|ext| ext == "json") {
            let mut json = serde_json::Deserializer::from_str(text);
            serde_path_to_error::deserialize(&mut json)?
        } else {
            toml::from_str(text)?
        };
        profile.check()?;
        Ok(profile)
    }

    fn check(&self) -> Result<(), InvalidProfile> {
        if let Some(channels) = &self.channels {
            weights("channels", channels.values())?;
            if let Some(other) = channels.keys().find(|channel| !CHANNELS.contains(channel)) {
                return invalid(format!("channels.{}", other.word()), "has no traffic");
            }
        }
        if self
            .several_channels_percent
            .is_some_and(|share| share > 100)
        {
            return invalid("severalChannelsPercent", "is from 0 to 100");
        }
        if let Some(lengths) = &self.communications {
            let Lengths {
                shortest,
                typical,
                longest,
            } = *lengths;
            let ordered = 1 <= shortest && shortest <= typical && typical <= longest;
            if !ordered || longest > MAX_PROFILE_COMMUNICATIONS {
                return invalid(
                    "communications",
                    format!("1 <= shortest <= typical <= longest <= {MAX_PROFILE_COMMUNICATIONS}"),
                );
            }
        }
        if let Some(languages) = &self.languages {
            weights("languages", languages.values())?;
            let known = |code: &&String| !texts::CODES.contains(&code.as_str());
            if let Some(unknown) = languages.keys().find(known) {
                let problem = format!("is none of {}", texts::CODES.join(", "));
                return invalid(format!("languages.{unknown}"), problem);
            }
        }
        if let Some(hours) = self
            .arrival
            .as_ref()
            .and_then(|arrival| arrival.hours.as_ref())
        {
            if hours.len() != HOURS {
                return invalid(
                    "arrival.hours",
                    "has 24 weights, of the hours 0 to 23 in UTC",
                );
            }
            weights("arrival.hours", hours.iter())?;
        }
        Ok(())
    }

    /// The channels of conversation `index`, the first one it begins on.
    pub(super) fn channels(&self, index: u64, random: &mut ChaCha8Rng) -> Vec<Channel> {
        let first = match &self.channels {
            None => CHANNELS[(index % CHANNELS.len() as u64) as usize],
            Some(weights) => *drawn(weights.iter(), random),
        };
        let weighted = |channel: &Channel| {
            let weights = self.channels.as_ref();
            weights.is_none_or(|weights| weights.get(channel).is_some_and(|weight| *weight > 0))
        };
        let others = CHANNELS.into_iter().filter(|c| *c != first);
        let mut others: Vec<Channel> = others.filter(weighted).collect();
        others.shuffle(random);
        let more = match (random.random_range(0..100), self.several_channels_percent) {
            (draw, Some(share)) => usize::from(draw < share),
            (0..5, None) => 2,
            (5..25, None) => 1,
            (_, None) => 0,
        };
        others.truncate(more);
        others.insert(0, first);
        others
    }

    /// How many communications a conversation has.
    pub(super) fn communications(&self, random: &mut ChaCha8Rng) -> usize {
        let Some(lengths) = self.communications else {
            // Mostly short: the smaller of two draws.
            let draws = [0; 2].map(|_| random.random_range(1..=MAX_ORDINARY));
            return draws[0].min(draws[1]);
        };
        match random.random_bool(0.5) {
            true => random.random_range(lengths.shortest..=lengths.typical),
            false => random.random_range(lengths.typical..=lengths.longest),
        }
    }

    /// The language of a conversation, as `texts` numbers them.
    pub(super) fn language(&self, random: &mut ChaCha8Rng) -> usize {
        let Some(weights) = &self.languages else {
            return random.random_range(0..texts::languages());
        };
        let code = drawn(weights.iter(), random);
        let mut places: Vec<usize> = (0..texts::languages()).collect();
        places.retain(|&place| texts::CODES[place] == code);
        places[random.random_range(0..places.len())]
    }

    /// When in the window that begins at `from` a conversation begins, milliseconds after it.
    pub(super) fn start_ms(&self, from: Timestamp, random: &mut ChaCha8Rng) -> i64 {
        let hours = self
            .arrival
            .as_ref()
            .and_then(|arrival| arrival.hours.as_ref());
        let Some(hours) = hours else {
            return random.random_range(0..START_WINDOW_MS);
        };
        let hour = drawn(hours.iter().enumerate(), random);
        let of_day = i64::try_from(hour).unwrap_or(0) * HOUR_MS + random.random_range(0..HOUR_MS);
        // The window is a day long, so each time of day is in it once.
        (of_day - from.as_millisecond()).rem_euclid(START_WINDOW_MS)
    }

    /// How `--rate` is kept.
    pub(crate) fn spacing(&self) -> Spacing {
        self.arrival
            .as_ref()
            .map_or(Spacing::Even, |arrival| arrival.spacing)
    }
}

fn drawn<'a, T>(
    weighted: impl Iterator<Item = (T, &'a u32)> + Clone,
    random: &mut ChaCha8Rng,
) -> T {
    let index = WeightedIndex::new(weighted.clone().map(|(_, weight)| *weight))
        .expect("the check saw a weight above 0, and none that could overflow a sum");
    let mut choices = weighted.map(|(choice, _)| choice);
    let choice = choices.nth(index.sample(random));
    choice.expect("the index is one of the weights'")
}

fn weights<'a>(
    field: &str,
    weights: impl Iterator<Item = &'a u32> + Clone,
) -> Result<(), InvalidProfile> {
    if weights.clone().any(|weight| *weight > MAX_WEIGHT) {
        return invalid(field, format!("a weight is from 0 to {MAX_WEIGHT}"));
    }
    if weights.clone().all(|weight| *weight == 0) {
        return invalid(field, "one weight has to be above 0");
    }
    Ok(())
}

fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Result<(), InvalidProfile> {
    Err(InvalidProfile::Field {
        field: field.into(),
        problem: problem.into(),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::{Value, json};

    use super::super::super::seeds;
    use super::*;

    fn root() -> std::path::PathBuf {
        std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR"))
    }

    fn parsed(profile: Value) -> Result<Profile, String> {
        let parsed = Profile::parse(Path::new("p.json"), &profile.to_string());
        parsed.map_err(|error| error.to_string())
    }

    fn schema() -> Value {
        let file = root().join("schemas/traffic-profile.schema.json");
        serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
    }

    fn names(value: &Value) -> BTreeSet<String> {
        match value {
            Value::Object(members) => members.keys().cloned().collect(),
            Value::Array(items) => {
                let words = items.iter().map(|item| item.as_str().unwrap().to_owned());
                words.collect()
            }
            other => panic!("neither members nor words: {other}"),
        }
    }

    #[test]
    fn every_sample_parses() {
        let mut samples = 0;
        for entry in std::fs::read_dir(root().join("deploy/profiles")).unwrap() {
            let file = entry.unwrap().path();
            let text = std::fs::read_to_string(&file).unwrap();
            let parsed = Profile::parse(&file, &text);
            assert!(
                parsed.is_ok_and(|p| p != Profile::default()),
                "{}",
                file.display()
            );
            samples += 1;
        }
        assert!(samples >= 3, "{samples}");
    }

    /// The example has every field, so its members are the code's fields: unknown ones are refused, and what
    /// is written back is what was read.
    #[test]
    fn the_schema_says_what_the_code_does() {
        let schema = schema();
        let example = &schema["examples"][0];
        let profile = parsed(example.clone()).unwrap();
        assert_eq!(&serde_json::to_value(&profile).unwrap(), example);
        let properties = &schema["properties"];
        assert_eq!(names(properties), names(example));
        for section in ["communications", "arrival"] {
            assert_eq!(
                names(&properties[section]["properties"]),
                names(&example[section])
            );
        }
        for field in names(&properties["communications"]["required"]) {
            let mut without = example.clone();
            without["communications"]
                .as_object_mut()
                .unwrap()
                .remove(&field);
            assert!(parsed(without).unwrap_err().contains(&field));
        }
        let channels = CHANNELS.map(|channel| channel.word().to_owned());
        assert_eq!(
            names(&properties["channels"]["propertyNames"]["enum"]),
            channels.into()
        );
        let codes = texts::CODES.map(str::to_owned);
        assert_eq!(
            names(&properties["languages"]["propertyNames"]["enum"]),
            codes.into()
        );
        assert_eq!(schema["$defs"]["weight"]["maximum"], MAX_WEIGHT);
        let longest = &properties["communications"]["properties"]["longest"]["maximum"];
        assert_eq!(longest, MAX_PROFILE_COMMUNICATIONS);
        assert_eq!(
            properties["arrival"]["properties"]["hours"]["minItems"],
            HOURS
        );
    }

    #[test]
    fn what_is_wrong_is_named_by_line_or_field() {
        for (wrong, what) in [
            (
                json!({"channels": {"SMS": 0}}),
                "channels: one weight has to be above 0",
            ),
            (
                json!({"channels": {"SYSTEM": 1}}),
                "channels.SYSTEM: has no traffic",
            ),
            (json!({"channels": {"FAX": 1}}), "channels"),
            (
                json!({"channels": {"SMS": MAX_WEIGHT + 1}}),
                "channels: a weight is from 0",
            ),
            (
                json!({"severalChannelsPercent": 101}),
                "severalChannelsPercent: is from 0 to 100",
            ),
            (
                json!({"communications": {"shortest": 0, "typical": 1, "longest": 2}}),
                "communications: 1 <=",
            ),
            (
                json!({"communications": {"shortest": 1, "typical": 3, "longest": 2}}),
                "communications: 1 <=",
            ),
            (
                json!({"languages": {"tlh": 1}}),
                "languages.tlh: is none of en",
            ),
            (
                json!({"arrival": {"hours": [1, 2]}}),
                "arrival.hours: has 24 weights",
            ),
            (
                json!({"arrival": {"spacing": "odd"}}),
                "arrival.spacing: unknown variant",
            ),
            (json!({"colour": "red"}), "unknown field `colour`"),
        ] {
            let error = parsed(wrong).unwrap_err();
            assert!(error.contains(what), "{what}: {error}");
        }
        let text = "severalChannelsPercent = 5\n[communications]\nshortest = \"one\"\n";
        let error = Profile::parse(Path::new("p.toml"), text).unwrap_err();
        assert!(error.to_string().contains("line 3"), "{error}");
        let text = "{\n  \"channels\": {\"SMS\": -1}\n}";
        let error = Profile::parse(Path::new("p.json"), text).unwrap_err();
        assert!(error.to_string().contains("line 2"), "{error}");
    }

    #[test]
    fn draws_follow_the_weights() {
        let profile = parsed(json!({
            "channels": {"SMS": 3, "VOICE": 1, "CHAT": 0},
            "severalChannelsPercent": 50,
            "communications": {"shortest": 5, "typical": 10, "longest": 100},
            "languages": {"en": 1},
            "arrival": {"hours": [0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]}
        }))
        .unwrap();
        let mut random = seeds::generator(1, 0);
        let from: Timestamp = "2026-11-21T00:17:31.250Z".parse().unwrap();
        let (mut sms, mut both, mut short, mut nine) = (0, 0, 0, 0);
        for index in 0..4_000 {
            let channels = profile.channels(index, &mut random);
            assert!(!channels.contains(&Channel::Chat), "its weight is 0");
            sms += usize::from(channels[0] == Channel::Sms);
            both += usize::from(channels.len() == 2);
            let length = profile.communications(&mut random);
            assert!((5..=100).contains(&length));
            short += usize::from(length <= 10);
            assert_eq!(texts::CODES[profile.language(&mut random)], "en");
            let start = profile.start_ms(from, &mut random);
            assert!((0..START_WINDOW_MS).contains(&start));
            let of_day = (from.as_millisecond() + start).rem_euclid(START_WINDOW_MS);
            let hour = of_day / HOUR_MS;
            assert!([9, 14].contains(&hour), "{hour}");
            nine += usize::from(hour == 9);
        }
        for (what, count, expected) in [
            ("sms", sms, 3_000),
            ("both", both, 2_000),
            ("short", short, 2_000),
            ("nine", nine, 2_667),
        ] {
            assert!(count.abs_diff(expected) < 150, "{what}: {count}");
        }
    }
}
