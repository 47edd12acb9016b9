//! What people can do: send a message, place a call, let time pass.
//!
//! Owns the fields and their labels; their names are those of the structs that read them (`page`).

use maud::{Markup, html};

use crate::emulator::page::Forms;
use crate::emulator::resource::Channel;

pub(super) fn message_form(forms: &Forms) -> Markup {
    html! {
        h2 #message { "Send a message" }
        form method="post" action="/emulator/forms/message" {
            label {
                "Channel"
                select name="channel" {
                    @for one in [Channel::Sms, Channel::Rcs, Channel::Whatsapp, Channel::Chat] {
                        option value=(one.word()) selected[one == forms.channel] { (one.word()) }
                    }
                }
            }
            div.pair {
                label { "From" input name="from" required value=(forms.from); }
                label { "To" input name="to" required value=(forms.to); }
            }
            label { "Text" textarea name="text" required dir="auto" {} }
            details open[forms.channel == Channel::Chat] {
                summary { "Chat of a classic service" }
                div.pair {
                    label { "Service SID" input name="serviceId" placeholder="IS…" value=(forms.service_id); }
                    label { "Conversation SID" input name="channelId" placeholder="CH…" value=(forms.channel_id); }
                }
            }
            button type="submit" { "Send message" }
        }
    }
}

pub(super) fn call_form(forms: &Forms) -> Markup {
    html! {
        h2 #call { "Place a call" }
        form method="post" action="/emulator/forms/call" {
            div.pair {
                label { "From" input name="from" required value=(forms.from); }
                label { "To" input name="to" required value=(forms.to); }
            }
            label {
                "Call type"
                select name="callType" {
                    option value="PSTN" { "PSTN" }
                    option value="CLIENT" { "CLIENT" }
                    option value="PUBLIC_SIP" { "PUBLIC_SIP" }
                }
            }
            label {
                "What is said" span.muted { " a line each, the customer begins, then by turns" }
                textarea name="utterances" required dir="auto" {}
            }
            details {
                summary { "TwiML" }
                label {
                    "Document" span.muted { " none: only capture rules listen" }
                    textarea.code name="twiml" spellcheck="false" {}
                }
            }
            button type="submit" { "Place call" }
        }
    }
}

pub(super) fn clock_form() -> Markup {
    html! {
        h2 #clock { "Advance the clock" }
        p.muted { "Everything that is due by then happens: conversations go inactive, and close." }
        form method="post" action="/emulator/forms/clock" {
            div.pair {
                label { "By" input type="number" name="amount" min="1" max="100000" value="10" required inputmode="numeric"; }
                label {
                    "Unit"
                    select name="unit" {
                        option value="60" { "minutes" }
                        option value="3600" { "hours" }
                        option value="86400" { "days" }
                        option value="1" { "seconds" }
                    }
                }
            }
            button type="submit" { "Advance clock" }
        }
    }
}
