//! What the account would be charged for, counted.
//!
//! Owns the counts behind `GET /emulator/bill`: speech recognition by call and engine, runs of
//! Intelligence operators, memory extractions, and traffic that several capture rules took. Refuses
//! prices; Twilio's are its own.
//!
//! Guarantees: sums cover everything since the start; single calls are remembered up to
//! [`MAX_REMEMBERED_CALLS`], the oldest forgotten first. Operators run for every author, and the emulator
//! does not know which an Intelligence configuration has, so that each linked configuration counts as one
//! operator of both kinds: one run a new communication, and one when the conversation goes INACTIVE and
//! CLOSED. Extractions count at the same two moments, only where the configuration enables them, and as not
//! done where the memory store is dead. While a conversation is ACTIVE neither happens.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;

use super::super::configuration::Settings;
use super::super::resource::{Status, rfc3339};

/// Calls that are remembered one by one.
pub(crate) const MAX_REMEMBERED_CALLS: usize = 10_000;
/// Ids that are counted one by one; the others are counted together, under the empty id.
pub(crate) const MAX_COUNTED_IDS: usize = 1_000;

/// The bill.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Bill {
    pub(crate) speech: Speech,
    /// By Intelligence configuration.
    pub(crate) operators: BTreeMap<Arc<str>, OperatorRuns>,
    /// By memory store.
    pub(crate) extractions: BTreeMap<Arc<str>, Extractions>,
    /// Messages and calls that more than one capture rule took.
    pub(crate) unexpected_groupings: u64,
    pub(crate) calls: VecDeque<CallLine>,
    forgotten_calls: u64,
}

/// Sums of speech recognition. Minutes are begun minutes, of each engine on each call.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Speech {
    pub(crate) capture_rule_minutes: u64,
    pub(crate) conversation_relay_minutes: u64,
    pub(crate) transcription_minutes: u64,
    pub(crate) double_billed_calls: u64,
}

/// Runs of one Intelligence configuration's operators.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OperatorRuns {
    pub(crate) communications: u64,
    pub(crate) inactive: u64,
    pub(crate) closed: u64,
}

/// Extractions into one memory store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Extractions {
    pub(crate) inactive: u64,
    pub(crate) closed: u64,
    /// The store was dead, and nobody was told.
    pub(crate) not_done: u64,
}

/// One call.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CallLine {
    pub(crate) call_sid: Arc<str>,
    #[serde(serialize_with = "rfc3339")]
    pub(crate) ended_at: Timestamp,
    /// A capture rule and TwiML both had it recognised.
    pub(crate) double_billed: bool,
    /// More than one capture rule took it.
    pub(crate) unexpected_grouping: bool,
    pub(crate) engines: Vec<EngineLine>,
}

/// One engine on one call.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EngineLine {
    pub(crate) source: Source,
    pub(crate) engine: Arc<str>,
    pub(crate) conversation_id: Arc<str>,
    pub(crate) seconds: u64,
    pub(crate) minutes: u64,
}

/// What brought something into a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum Source {
    /// Passively; a call is heard by Real-Time Transcription.
    CaptureRule,
    /// Passively, from the classic service.
    ClassicBridge,
    /// `<ConversationRelay>` in TwiML.
    ConversationRelay,
    /// `<Transcription>` in TwiML.
    Transcription,
}

impl EngineLine {
    /// `milliseconds` of hearing.
    pub(crate) fn new(
        source: Source,
        engine: Arc<str>,
        conversation_id: Arc<str>,
        milliseconds: u64,
    ) -> Self {
        EngineLine {
            source,
            engine,
            conversation_id,
            seconds: milliseconds.div_ceil(1_000),
            minutes: milliseconds.div_ceil(60_000),
        }
    }
}

impl Bill {
    /// A call ended.
    pub(super) fn call(&mut self, line: CallLine) {
        for engine in &line.engines {
            *match engine.source {
                Source::ConversationRelay => &mut self.speech.conversation_relay_minutes,
                Source::Transcription => &mut self.speech.transcription_minutes,
                Source::CaptureRule | Source::ClassicBridge => {
                    &mut self.speech.capture_rule_minutes
                }
            } += engine.minutes;
        }
        self.speech.double_billed_calls += u64::from(line.double_billed);
        self.grouping(line.unexpected_grouping);
        if line.engines.is_empty() {
            return;
        }
        if self.calls.len() == MAX_REMEMBERED_CALLS {
            self.calls.pop_front();
            self.forgotten_calls += 1;
        }
        self.calls.push_back(line);
    }

    /// A message or call was captured; `unexpected`: by several rules.
    pub(super) fn grouping(&mut self, unexpected: bool) {
        self.unexpected_groupings += u64::from(unexpected);
    }

    /// A communication is new, whoever its author is.
    pub(super) fn communication(&mut self, settings: &Settings) {
        for id in &settings.intelligence_configuration_ids {
            counted(&mut self.operators, id).communications += 1;
        }
    }

    /// A conversation became `status`; its store is `alive`.
    pub(super) fn became(&mut self, status: Status, settings: &Settings, alive: bool) {
        if status == Status::Active {
            return;
        }
        for id in &settings.intelligence_configuration_ids {
            let runs = counted(&mut self.operators, id);
            *match status {
                Status::Inactive => &mut runs.inactive,
                Status::Active | Status::Closed => &mut runs.closed,
            } += 1;
        }
        if settings.memory_extraction_enabled {
            let extractions = counted(&mut self.extractions, &settings.memory_store_id);
            *match (alive, status) {
                (false, _) => &mut extractions.not_done,
                (true, Status::Inactive) => &mut extractions.inactive,
                (true, Status::Active | Status::Closed) => &mut extractions.closed,
            } += 1;
        }
    }
}

fn counted<'a, T: Default>(counts: &'a mut BTreeMap<Arc<str>, T>, id: &Arc<str>) -> &'a mut T {
    let known = counts.contains_key(id) || counts.len() < MAX_COUNTED_IDS;
    let id = if known { Arc::clone(id) } else { "".into() };
    counts.entry(id).or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn settings(extraction: bool, operators: &[&str]) -> Settings {
        serde_json::from_value(json!({
            "displayName": "test",
            "conversationGroupingType": "GROUP_BY_PROFILE",
            "memoryStoreId": "mem_store_1",
            "memoryExtractionEnabled": extraction,
            "intelligenceConfigurationIds": operators,
        }))
        .unwrap()
    }

    fn shown(bill: &Bill) -> Value {
        serde_json::to_value(bill).unwrap()
    }

    #[test]
    fn fact_10_extraction_and_end_operators_wait_for_the_end_of_activity() {
        let mut bill = Bill::default();
        let on = settings(true, &["intel_1"]);
        bill.communication(&on);
        bill.became(Status::Active, &on, true);
        assert_eq!(shown(&bill)["extractions"], json!({}));
        bill.became(Status::Inactive, &on, true);
        bill.became(Status::Closed, &on, true);
        bill.became(Status::Closed, &on, false);
        bill.became(Status::Closed, &settings(false, &[]), true);
        assert_eq!(
            shown(&bill)["extractions"],
            json!({"mem_store_1": {"inactive": 1, "closed": 1, "notDone": 1}})
        );
        assert_eq!(
            shown(&bill)["operators"],
            json!({"intel_1": {"communications": 1, "inactive": 1, "closed": 2}})
        );
    }

    #[test]
    fn memory_is_bounded_and_sums_are_not() {
        let mut bill = Bill::default();
        let line = |number: usize| CallLine {
            call_sid: format!("CA{number}").into(),
            ended_at: Timestamp::UNIX_EPOCH,
            double_billed: false,
            unexpected_grouping: false,
            engines: vec![EngineLine::new(
                Source::Transcription,
                "google".into(),
                "v".into(),
                60_001,
            )],
        };
        for number in 0..MAX_REMEMBERED_CALLS + 3 {
            bill.call(line(number));
            bill.communication(&settings(false, &[&format!("intel_{number}")]));
        }
        let shown = shown(&bill);
        assert_eq!(shown["speech"]["transcriptionMinutes"], 2 * 10_003);
        assert_eq!(shown["forgottenCalls"], 3);
        assert_eq!(shown["calls"][0]["callSid"], "CA3");
        assert_eq!(shown["calls"][0]["engines"][0]["seconds"], 61);
        assert_eq!(shown["operators"].as_object().unwrap().len(), 1_001);
        assert_eq!(shown["operators"][""]["communications"], 9_003);
    }
}
