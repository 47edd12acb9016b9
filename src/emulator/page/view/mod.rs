//! The page's HTML.
//!
//! Owns layout and words: `front` has the front page, `conversation` one conversation, `forms` what both
//! offer. Refuses to look anything up: all that it shows is handed over.
//!
//! Guarantees: every text from outside is escaped by the template and stands in an element of its own
//! direction (`bdi`, `dir=auto`), so that neither markup nor right-to-left marks of a message reach beyond
//! it. There is no script, and nothing is loaded from anywhere.

mod conversation;
mod forms;
mod front;

use jiff::Timestamp;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::Note;
use super::timeline::{PAGE_ITEMS, Window};
use crate::emulator::resource::{Channel, Status};
use crate::emulator::state::Entry;

pub(super) use self::conversation::{One, conversation};
pub(super) use self::front::{Front, front};

/// The one style sheet, which the policy names by its hash.
pub(super) const STYLE: &str = include_str!("../style.css");

/// What every page has around its content.
pub(super) struct Frame<'a> {
    pub(super) title: &'a str,
    pub(super) account: &'a str,
    pub(super) note: Option<Note>,
    /// Seconds between two loads, where somebody asked for it.
    pub(super) refresh: Option<u32>,
}

impl Frame<'_> {
    /// The whole document.
    pub(super) fn around(&self, content: &Markup) -> Markup {
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    @if let Some(seconds) = self.refresh {
                        meta http-equiv="refresh" content=(seconds);
                    }
                    // An empty icon, or the browser asks for one.
                    link rel="icon" href="data:,";
                    title { (self.title) " · Convolake emulator" }
                    style { (PreEscaped(STYLE)) }
                }
                body {
                    a.skip href="#content" { "Skip to the content" }
                    header.top {
                        div {
                            strong { a href="/emulator/" { "Conversation Orchestrator, emulated" } }
                            @if !self.account.is_empty() {
                                span.muted { "account " bdi.id { (self.account) } }
                            }
                            nav aria-label="Pages" {
                                a href="/emulator/" { "Conversations" }
                                a href="/emulator/#message" { "Make traffic" }
                                a href="/emulator/#bill" { "Bill" }
                                a href="/emulator/#configurations" { "Configurations" }
                            }
                        }
                    }
                    main #content {
                        @if let Some(note) = self.note {
                            p.note.good[note.is_good()] role="status" { (note.text()) }
                        }
                        (content)
                    }
                }
            }
        }
    }
}

/// That something is not there, or cannot be.
pub(super) fn problem(heading: &str, text: &str) -> Markup {
    html! {
        h1 { (heading) }
        p { bdi { (text) } }
        p { a href="/emulator/" { "All conversations" } }
    }
}

/// Links to the neighbouring pages of a list.
struct Pages<'a> {
    window: Window,
    /// Of the page that ends before a position.
    address: &'a dyn Fn(usize) -> String,
    newer: &'a str,
    older: &'a str,
}

fn pages(pages: &Pages<'_>, label: &str) -> Markup {
    let window = pages.window;
    html! {
        @if window.of > PAGE_ITEMS {
            nav.pages aria-label=(label) {
                @if let Some(before) = window.newer() {
                    a href=((pages.address)(before)) { (pages.newer) }
                }
                @if let Some(before) = window.older() {
                    a href=((pages.address)(before)) { (pages.older) }
                }
            }
        }
    }
}

fn status(status: Status) -> Markup {
    html! {
        span.badge.good[status == Status::Active].warn[status == Status::Inactive] { (word(status)) }
    }
}

fn channels(entry: &Entry) -> Markup {
    html! {
        span.badges { @for one in &entry.channels { (channel(*one)) } }
    }
}

fn channel(channel: Channel) -> Markup {
    html! { span.badge { (channel.word()) } }
}

/// A time in UTC, for people and for machines.
fn moment(at: Timestamp) -> Markup {
    html! {
        time datetime=(at) {
            span { (at.strftime("%Y-%m-%d")) }
            " "
            span { (at.strftime("%H:%M:%S%.3f")) }
        }
    }
}

fn word(status: Status) -> &'static str {
    match status {
        Status::Active => "ACTIVE",
        Status::Inactive => "INACTIVE",
        Status::Closed => "CLOSED",
    }
}
