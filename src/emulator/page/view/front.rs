//! The front page: everything at a glance.
//!
//! Owns the sums, the list of conversations, the bill and the configurations as people read them.

use jiff::Timestamp;
use maud::{Markup, html};

use super::forms::{call_form, clock_form, message_form};
use super::{Pages, channel, channels, moment, pages, status, word};
use crate::emulator::Counts;
use crate::emulator::configuration::{Configuration, GroupingType};
use crate::emulator::page::{Forms, Listed};
use crate::emulator::resource::Status;
use crate::emulator::state::{Bill, CallLine, Configurations, Entry, Source};

/// Calls of the bill that are shown.
const BILL_CALLS: usize = 20;
/// Capture rules of a configuration that are shown.
const CONFIGURATION_RULES: usize = 12;

/// The front page.
pub(in crate::emulator::page) struct Front<'a> {
    pub(in crate::emulator::page) counts: Counts,
    pub(in crate::emulator::page) now: Timestamp,
    pub(in crate::emulator::page) listed: &'a Listed<'a>,
    pub(in crate::emulator::page) configurations: &'a Configurations,
    pub(in crate::emulator::page) bill: &'a Bill,
    pub(in crate::emulator::page) forms: &'a Forms,
    pub(in crate::emulator::page) refreshes: bool,
}

/// Everything at a glance, and the forms.
pub(in crate::emulator::page) fn front(page: &Front<'_>) -> Markup {
    html! {
        h1 { "Conversations" }
        p.muted {
            "Emulated time " (moment(page.now)) ". "
            @if page.refreshes {
                "Loads again every few seconds. " a href="/emulator/" { "Stop" }
            } @else {
                a href="/emulator/?refresh=5" { "Load again every 5 seconds" }
            }
        }
        (sums(page.counts))
        div.columns {
            div {
                section.card aria-labelledby="list" { (conversations(page.listed)) }
                section.card aria-labelledby="bill" { (bill(page.bill)) }
                section.card aria-labelledby="configurations" { (configurations(page.configurations)) }
            }
            div {
                section.card aria-labelledby="message" { (message_form(page.forms)) }
                section.card aria-labelledby="call" { (call_form(page.forms)) }
                section.card aria-labelledby="clock" { (clock_form()) }
            }
        }
    }
}

fn sums(counts: Counts) -> Markup {
    let open = counts
        .conversations
        .saturating_sub(counts.conversations_closed);
    html! {
        dl.sums {
            (sum("Conversations", counts.conversations))
            (sum("Open", open))
            (sum("Communications", counts.communications))
            (sum("Callbacks accepted", counts.deliveries_accepted))
            (sum("Refused or lost", counts.deliveries.saturating_sub(counts.deliveries_accepted)))
            (sum("API requests", counts.api_requests))
        }
    }
}

fn sum(name: &str, value: u64) -> Markup {
    html! { div { dt { (name) } dd { (value) } } }
}

fn conversations(listed: &Listed<'_>) -> Markup {
    let window = listed.window;
    let links = Pages {
        window,
        address: &|before| match listed.status {
            Some(status) => format!("/emulator/?status={}&before={before}", word(status)),
            None => format!("/emulator/?before={before}"),
        },
        newer: "Newer",
        older: "Older",
    };
    html! {
        h2 #list { "Newest first" }
        ul.filters aria-label="Which are shown" {
            (filter("All", None, listed.status))
            @for status in [Status::Active, Status::Inactive, Status::Closed] {
                (filter(name(status), Some(status), listed.status))
            }
        }
        @if listed.entries.is_empty() {
            p.muted { "None yet. Send a message that a configuration's capture rules take, or create one over the API." }
        } @else {
            div.scroll tabindex="0" role="region" aria-label="Conversations, scrollable" {
                table {
                    caption { (window.first + 1) " to " (window.end) " of " (window.of) ", by creation" }
                    thead {
                        tr {
                            th scope="col" { "Conversation" }
                            th scope="col" { "Status" }
                            th.wide scope="col" { "Channels" }
                            th.number scope="col" { "Said" }
                            th.wide scope="col" { "Changed" }
                        }
                    }
                    tbody {
                        @for entry in listed.entries.iter().rev() { (row(entry)) }
                    }
                }
            }
            (pages(&links, "Pages of the list"))
        }
    }
}

fn filter(label: &str, of: Option<Status>, current: Option<Status>) -> Markup {
    let address = match of {
        Some(status) => format!("/emulator/?status={}", word(status)),
        None => "/emulator/".to_owned(),
    };
    html! {
        li {
            a href=(address) aria-current=[(of == current).then_some("true")] { (label) }
        }
    }
}

fn row(entry: &Entry) -> Markup {
    let own = &entry.conversation;
    html! {
        tr {
            th scope="row" {
                a href={ "/emulator/conversations/" (own.id) } {
                    bdi { (own.name.as_deref().unwrap_or("without a name")) }
                }
                div.id { (own.id) }
            }
            td { (status(own.status)) }
            td.wide { (channels(entry)) }
            td.number { (entry.communications.len()) }
            td.wide { (moment(own.updated_at)) }
        }
    }
}

fn bill(bill: &Bill) -> Markup {
    let speech = &bill.speech;
    let runs = bill.operators.values();
    let runs: u64 = runs
        .map(|one| one.communications + one.inactive + one.closed)
        .sum();
    let extractions = bill.extractions.values();
    let extractions: u64 = extractions.map(|one| one.inactive + one.closed).sum();
    html! {
        h2 #bill { "The bill" }
        dl.facts {
            dt { "Minutes by capture rules" } dd { (speech.capture_rule_minutes) }
            dt { "Minutes by ConversationRelay" } dd { (speech.conversation_relay_minutes) }
            dt { "Minutes by Transcription" } dd { (speech.transcription_minutes) }
            dt { "Calls recognised twice" } dd { (speech.double_billed_calls) }
            dt { "Operator runs" } dd { (runs) }
            dt { "Memory extractions" } dd { (extractions) }
            dt { "Unexpected groupings" } dd { (bill.unexpected_groupings) }
        }
        @if bill.calls.is_empty() {
            p.muted { "No call was recognised yet." }
        } @else {
            div.scroll tabindex="0" role="region" aria-label="Calls on the bill, scrollable" {
                table {
                    caption { "The newest calls, in begun minutes of speech recognition" }
                    thead {
                        tr {
                            th scope="col" { "Call" }
                            th scope="col" { "Recognised by" }
                            th.number scope="col" { "Minutes" }
                        }
                    }
                    tbody { @for call in bill.calls.iter().rev().take(BILL_CALLS) { (call_row(call)) } }
                }
            }
        }
    }
}

fn call_row(call: &CallLine) -> Markup {
    html! {
        tr {
            th scope="row" {
                span.id { (call.call_sid) }
                @if call.double_billed { div { span.badge.bad { "billed twice" } } }
            }
            td {
                @for one in &call.engines {
                    div {
                        a href={ "/emulator/conversations/" (one.conversation_id) } { (source(one.source)) }
                        " " bdi.muted { (one.engine) }
                    }
                }
            }
            td.number { @for one in &call.engines { div { (one.minutes) } } }
        }
    }
}

fn source(source: Source) -> &'static str {
    match source {
        Source::CaptureRule => "a capture rule",
        Source::ClassicBridge => "the classic bridge",
        Source::ConversationRelay => "ConversationRelay",
        Source::Transcription => "Transcription",
    }
}

fn configurations(all: &Configurations) -> Markup {
    html! {
        h2 #configurations { "Configurations" }
        div.scroll tabindex="0" role="region" aria-label="Configurations, scrollable" {
            table {
                caption { "Which traffic becomes conversations" }
                thead {
                    tr {
                        th scope="col" { "Configuration" }
                        th scope="col" { "Captures" }
                        th.wide scope="col" { "Groups by" }
                    }
                }
                tbody {
                    @for one in all.all() { (configuration(one)) }
                }
            }
        }
    }
}

fn configuration(one: &Configuration) -> Markup {
    let settings = &one.settings;
    let channels = settings.channel_settings.iter();
    let rules = channels.flat_map(|(channel, of)| of.capture_rules.iter().map(|r| (*channel, r)));
    let mut rules = rules.take(CONFIGURATION_RULES + 1).peekable();
    html! {
        tr {
            th scope="row" {
                bdi { (settings.display_name) }
                div.id { (one.id) }
            }
            td {
                @if rules.peek().is_none() { span.muted { "nothing by itself" } }
                @for (place, (channel_name, rule)) in rules.enumerate() {
                    @if place < CONFIGURATION_RULES {
                        div.line {
                            (channel(channel_name))
                            bdi { (rule.from) } " → " bdi { (rule.to) }
                            @if let Some(kind) = rule.metadata.get("callType") { bdi.muted { (kind) } }
                        }
                    } @else {
                        div.muted { "and more" }
                    }
                }
            }
            td.wide { (grouping(settings.conversation_grouping_type)) }
        }
    }
}

fn grouping(grouping: GroupingType) -> &'static str {
    match grouping {
        GroupingType::GroupByProfile => "profile",
        GroupingType::GroupByParticipantAddresses => "addresses",
        GroupingType::GroupByParticipantAddressesAndChannelType => "addresses and channel",
    }
}

fn name(status: Status) -> &'static str {
    match status {
        Status::Active => "Active",
        Status::Inactive => "Inactive",
        Status::Closed => "Closed",
    }
}
