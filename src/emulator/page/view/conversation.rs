//! One conversation: who takes part, what was said, and who was told of it.
//!
//! Owns how a timeline's items look.

use jiff::Timestamp;
use maud::{Markup, html};

use super::forms::message_form;
use super::{Pages, channel, channels, moment, pages, status};
use crate::emulator::callbacks::{Attempt, Delivery};
use crate::emulator::page::Forms;
use crate::emulator::page::timeline::{Event, Happened, Window};
use crate::emulator::resource::{
    Communication, ContentType, DeliveryStatus, Participant, ParticipantType, Status,
};
use crate::emulator::state::Entry;

/// One conversation.
pub(in crate::emulator::page) struct One<'a> {
    pub(in crate::emulator::page) entry: &'a Entry,
    /// The page of its timeline, and that page's items.
    pub(in crate::emulator::page) window: Window,
    pub(in crate::emulator::page) happened: &'a [(Timestamp, Happened<'a>)],
    pub(in crate::emulator::page) forms: &'a Forms,
}

/// One conversation: who, what, and who was told.
pub(in crate::emulator::page) fn conversation(page: &One<'_>) -> Markup {
    let own = &page.entry.conversation;
    let path = format!("/emulator/conversations/{}", own.id);
    html! {
        p { a href="/emulator/" { "All conversations" } }
        div.head {
            div {
                h1 { bdi { (own.name.as_deref().unwrap_or("Conversation without a name")) } }
                div.line {
                    (status(own.status))
                    (channels(page.entry))
                    span.id { (own.id) }
                }
            }
            @if own.status != Status::Closed {
                form method="post" action={ (path) "/close" } {
                    button.quiet type="submit" { "Close conversation" }
                }
            }
        }
        div.columns {
            section.card aria-labelledby="timeline" {
                h2 #timeline { "Timeline" }
                (timeline(page, &path))
            }
            div {
                section.card aria-labelledby="facts" { (facts(page.entry)) }
                @if own.status != Status::Closed {
                    section.card aria-labelledby="message" { (message_form(page.forms)) }
                }
            }
        }
    }
}

fn timeline(page: &One<'_>, path: &str) -> Markup {
    let window = page.window;
    let links = Pages {
        window,
        address: &|before| format!("{path}?before={before}"),
        newer: "Later",
        older: "Earlier",
    };
    html! {
        @if page.happened.is_empty() {
            p.muted { "Nothing was said yet, and nobody was told of anything." }
        } @else {
            p.muted { (window.first + 1) " to " (window.end) " of " (window.of) ", oldest first" }
            (pages(&links, "Pages of the timeline"))
            ol.timeline {
                @for (at, happened) in page.happened {
                    li {
                        (moment(*at))
                        div {
                            @match happened {
                                Happened::Said(communication) => (said(communication)),
                                Happened::Told(delivery, event) => (told(delivery, event)),
                            }
                        }
                    }
                }
            }
            (pages(&links, "Pages of the timeline, once more"))
        }
    }
}

fn said(communication: &Communication) -> Markup {
    let author = &communication.author;
    let spoken = communication.content.kind == ContentType::Transcription;
    html! {
        div.line {
            (channel(author.channel))
            strong { bdi { (author.address) } }
            span.muted { @if spoken { "said" } @else { "wrote" } }
            @for recipient in &communication.recipients {
                span {
                    "to " bdi { (recipient.address) }
                    @if let Some(delivered) = recipient.delivery_status {
                        " " span.muted { (delivery(delivered)) }
                    }
                }
            }
        }
        p.said dir="auto" { (communication.content.text) }
        @if communication.occurred_at != communication.created_at {
            div.muted { "at " (moment(communication.occurred_at)) }
        }
    }
}

fn told(delivery: &Delivery, event: &Event) -> Markup {
    html! {
        div.line {
            span.badge.good[delivery.accepted].bad[!delivery.accepted] { "callback" }
            strong { (delivery.event_type) }
            @if let Some(status) = &event.status { bdi { (status) } }
            @if delivery.duplicate { span.muted { "sent again" } }
            @if let Some(fault) = delivery.fault { span.badge.warn { (fault) } }
        }
        div.line.muted {
            bdi.url { (delivery.url) }
            @for attempt in &delivery.attempts { (answer(attempt)) }
            @if delivery.attempts.is_empty() { span { "never sent" } }
        }
    }
}

fn answer(attempt: &Attempt) -> Markup {
    html! {
        span {
            "→ "
            @match (attempt.status, attempt.error) {
                (Some(status), _) => (status),
                (None, Some("connect")) => "no connection",
                (None, Some(error)) => (error),
                (None, None) => "no answer",
            }
            " in " (attempt.milliseconds) " ms"
        }
    }
}

fn facts(entry: &Entry) -> Markup {
    let own = &entry.conversation;
    html! {
        h2 #facts { "About it" }
        dl.facts {
            dt { "Created" } dd { (moment(own.created_at)) }
            dt { "Changed" } dd { (moment(own.updated_at)) }
            dt { "Said" } dd { (entry.communications.len()) }
            dt { "Configuration" } dd.id { (own.configuration.id) }
            dt { "Its version" } dd { (own.configuration.version) }
            @for (key, value) in &own.metadata {
                dt { bdi { (key) } } dd { bdi { (value) } }
            }
        }
        h2 { "Participants" }
        @if entry.participants.is_empty() {
            p.muted { "None." }
        } @else {
            dl.facts {
                @for one in &entry.participants {
                    dt { (kind(one.kind)) }
                    dd { (participant(one)) }
                }
            }
        }
    }
}

fn participant(one: &Participant) -> Markup {
    html! {
        @if let Some(name) = &one.name { bdi { (name) } }
        @for address in &one.addresses {
            div { (channel(address.channel)) " " bdi.id { (address.address) } }
        }
        @if let Some(profile) = &one.profile_id {
            div.id { (profile) }
        }
    }
}

fn kind(kind: ParticipantType) -> &'static str {
    match kind {
        ParticipantType::HumanAgent => "Human agent",
        ParticipantType::Customer => "Customer",
        ParticipantType::AiAgent => "AI agent",
        ParticipantType::Agent => "Agent",
        ParticipantType::Unknown => "Unknown",
    }
}

fn delivery(status: DeliveryStatus) -> &'static str {
    match status {
        DeliveryStatus::Initiated => "initiated",
        DeliveryStatus::InProgress => "in progress",
        DeliveryStatus::Delivered => "delivered",
        DeliveryStatus::Read => "read",
        DeliveryStatus::Failed => "failed",
        DeliveryStatus::Completed => "completed",
    }
}
