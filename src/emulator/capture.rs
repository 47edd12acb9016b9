//! Passive capture: whether a configuration's rules take a message or a call.
//!
//! Owns the comparison of addresses and what a rule asks for: `from` and `to` exactly or `*`, the call
//! type (`PSTN` where a rule says nothing; `CLIENT` and `PUBLIC_SIP` only where it asks), WhatsApp
//! addresses with and without their prefix, chat by the classic service that is bridged and by nothing
//! else. Refuses to look at more than one configuration, and at conversations (`state::ingest`).
//!
//! Guarantees: a rule takes one direction only, so SMS needs two. A configuration takes a message or call
//! once, however many of its rules match; all of them are named.

use serde::{Deserialize, Serialize};

use super::configuration::{CaptureRule, Settings};
use super::resource::Channel;

/// How a call reaches Twilio.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum CallType {
    /// The telephone network.
    #[default]
    Pstn,
    /// A browser or app with the Voice SDK.
    Client,
    /// A SIP interface.
    PublicSip,
}

/// What is to be captured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Traffic<'a> {
    pub(crate) channel: Channel,
    pub(crate) from: &'a str,
    pub(crate) to: &'a str,
    /// Of VOICE only.
    pub(crate) call_type: CallType,
    /// The classic service of a chat, of CHAT only.
    pub(crate) service: Option<&'a str>,
}

/// An end of a message or call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum End {
    From,
    To,
}

/// A configuration takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Match {
    /// Positions in the channel's `captureRules`; none for a chat.
    pub(crate) rules: Vec<usize>,
    /// The end that a rule leaves open: whoever writes to or is called by a number that the rule names.
    pub(crate) customer: Option<End>,
}

/// Why a configuration does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Miss {
    /// Nothing is captured on this channel.
    NoCaptureRules,
    NoRuleMatches,
    /// A rule fits the call backwards: it would need a second one, `from` and `to` swapped.
    OnlyTheOtherDirection,
    /// A rule fits but for its `metadata.callType`.
    OtherCallType,
    /// Chat comes through `conversationsV1Bridge` only, and there is none.
    NoBridge,
    /// The bridge is to another classic service.
    OtherService,
}

/// Whether `settings` take `traffic`.
pub(crate) fn judge(settings: &Settings, traffic: Traffic<'_>) -> Result<Match, Miss> {
    if traffic.channel == Channel::Chat {
        return bridged(settings, traffic);
    }
    let rules = match settings.channel_settings.get(&traffic.channel) {
        Some(channel) if !channel.capture_rules.is_empty() => &channel.capture_rules,
        _ => return Err(Miss::NoCaptureRules),
    };
    let taking: Vec<usize> = (0..rules.len())
        .filter(|&at| asks_for(&rules[at], traffic) && fits(&rules[at], traffic))
        .collect();
    if !taking.is_empty() {
        return Ok(Match {
            customer: taking.iter().find_map(|&at| open_end(&rules[at])),
            rules: taking,
        });
    }
    let backwards = Traffic {
        from: traffic.to,
        to: traffic.from,
        ..traffic
    };
    let any = |judge: &dyn Fn(&CaptureRule) -> bool| rules.iter().any(judge);
    Err(if any(&|rule| fits(rule, traffic)) {
        Miss::OtherCallType
    } else if any(&|rule| asks_for(rule, traffic) && fits(rule, backwards)) {
        Miss::OnlyTheOtherDirection
    } else {
        Miss::NoRuleMatches
    })
}

/// `address` as it is compared: WhatsApp's with and without prefix are the same.
pub(crate) fn normalised(channel: Channel, address: &str) -> &str {
    match channel {
        Channel::Whatsapp => address.strip_prefix("whatsapp:").unwrap_or(address),
        _ => address,
    }
}

fn bridged(settings: &Settings, traffic: Traffic<'_>) -> Result<Match, Miss> {
    let bridge = settings.conversations_v1_bridge.as_ref();
    let bridge = bridge.ok_or(Miss::NoBridge)?;
    match traffic.service == Some(&*bridge.service_id) {
        true => Ok(Match {
            rules: Vec::new(),
            customer: None,
        }),
        false => Err(Miss::OtherService),
    }
}

fn fits(rule: &CaptureRule, traffic: Traffic<'_>) -> bool {
    let same = |pattern: &str, address: &str| {
        pattern == "*"
            || normalised(traffic.channel, pattern) == normalised(traffic.channel, address)
    };
    same(&rule.from, traffic.from) && same(&rule.to, traffic.to)
}

fn asks_for(rule: &CaptureRule, traffic: Traffic<'_>) -> bool {
    if traffic.channel != Channel::Voice {
        return true;
    }
    let asked = rule.metadata.get("callType").map(String::as_str);
    asked.unwrap_or("PSTN") == call_type_word(traffic.call_type)
}

fn call_type_word(call_type: CallType) -> &'static str {
    match call_type {
        CallType::Pstn => "PSTN",
        CallType::Client => "CLIENT",
        CallType::PublicSip => "PUBLIC_SIP",
    }
}

fn open_end(rule: &CaptureRule) -> Option<End> {
    match (&*rule.from == "*", &*rule.to == "*") {
        (true, false) => Some(End::From),
        (false, true) => Some(End::To),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NUMBER: &str = "+15551234567";
    const CUSTOMER: &str = "+15559876543";

    fn settings(channels: Value, bridge: Value) -> Settings {
        serde_json::from_value(json!({
            "displayName": "test",
            "conversationGroupingType": "GROUP_BY_PARTICIPANT_ADDRESSES",
            "memoryStoreId": "mem_store_1",
            "channelSettings": channels,
            "conversationsV1Bridge": bridge,
        }))
        .unwrap()
    }

    fn rules(channel: &str, rules: Value) -> Settings {
        settings(json!({channel: {"captureRules": rules}}), Value::Null)
    }

    fn message<'a>(channel: Channel, from: &'a str, to: &'a str) -> Traffic<'a> {
        Traffic {
            channel,
            from,
            to,
            call_type: CallType::Pstn,
            service: None,
        }
    }

    fn taken(rules: &[usize], customer: Option<End>) -> Result<Match, Miss> {
        Ok(Match {
            rules: rules.to_vec(),
            customer,
        })
    }

    #[test]
    fn fact_8_sms_needs_two_rules() {
        let one = rules("SMS", json!([{"from": "*", "to": NUMBER}]));
        let inbound = message(Channel::Sms, CUSTOMER, NUMBER);
        let outbound = message(Channel::Sms, NUMBER, CUSTOMER);
        assert_eq!(judge(&one, inbound), taken(&[0], Some(End::From)));
        assert_eq!(judge(&one, outbound), Err(Miss::OnlyTheOtherDirection));
        let two = rules(
            "SMS",
            json!([{"from": NUMBER, "to": "*", "metadata": {}}, {"from": "*", "to": NUMBER}]),
        );
        assert_eq!(judge(&two, inbound), taken(&[1], Some(End::From)));
        assert_eq!(judge(&two, outbound), taken(&[0], Some(End::To)));
        let other = message(Channel::Sms, CUSTOMER, "+15550000000");
        assert_eq!(judge(&two, other), Err(Miss::NoRuleMatches));
        let rcs = message(Channel::Rcs, CUSTOMER, NUMBER);
        assert_eq!(
            judge(&two, rcs),
            Err(Miss::NoCaptureRules),
            "rules are by channel"
        );
    }

    #[test]
    fn fact_8_client_and_sip_calls_are_captured_only_when_asked_for() {
        let types = [CallType::Pstn, CallType::Client, CallType::PublicSip];
        let asked = [
            (json!({}), [true, false, false]),
            (json!({"callType": "PSTN"}), [true, false, false]),
            (json!({"callType": "CLIENT"}), [false, true, false]),
            (json!({"callType": "PUBLIC_SIP"}), [false, false, true]),
        ];
        for (metadata, expected) in asked {
            let rule = json!([{"from": "*", "to": NUMBER, "metadata": metadata}]);
            let settings = rules("VOICE", rule);
            for (call_type, expected) in types.into_iter().zip(expected) {
                let call = Traffic {
                    call_type,
                    ..message(Channel::Voice, CUSTOMER, NUMBER)
                };
                let expected = match expected {
                    true => taken(&[0], Some(End::From)),
                    false => Err(Miss::OtherCallType),
                };
                assert_eq!(judge(&settings, call), expected, "{metadata} {call_type:?}");
            }
        }
    }

    #[test]
    fn fact_8_two_wildcards_take_every_call_and_every_match_is_named() {
        let both = rules(
            "VOICE",
            json!([{"from": "*", "to": "*"}, {"from": "*", "to": NUMBER}]),
        );
        let strangers = message(Channel::Voice, "+15550001", "+15550002");
        assert_eq!(judge(&both, strangers), taken(&[0], None));
        let known = message(Channel::Voice, CUSTOMER, NUMBER);
        assert_eq!(judge(&both, known), taken(&[0, 1], Some(End::From)));
    }

    #[test]
    fn fact_11_whatsapp_addresses_come_with_or_without_prefix() {
        let prefixed = format!("whatsapp:{NUMBER}");
        for rule in [NUMBER, &prefixed] {
            let settings = rules("WHATSAPP", json!([{"from": "*", "to": rule}]));
            for to in [NUMBER, &prefixed] {
                let message = message(Channel::Whatsapp, "whatsapp:+15550001", to);
                assert_eq!(judge(&settings, message), taken(&[0], Some(End::From)));
            }
        }
        let sms = rules("SMS", json!([{"from": "*", "to": NUMBER}]));
        let odd = message(Channel::Sms, CUSTOMER, &prefixed);
        assert_eq!(judge(&sms, odd), Err(Miss::NoRuleMatches), "not on SMS");
    }

    #[test]
    fn chat_comes_through_the_bridge_only() {
        let chat = |service| Traffic {
            service,
            ..message(Channel::Chat, "user123", "agent-1")
        };
        let rule = json!({"CHAT": {"captureRules": [{"from": "*", "to": "*"}]}});
        let by_rule = settings(rule.clone(), Value::Null);
        assert_eq!(judge(&by_rule, chat(Some("IS1"))), Err(Miss::NoBridge));
        let bridged = settings(rule, json!({"serviceId": "IS1"}));
        assert_eq!(judge(&bridged, chat(Some("IS1"))), taken(&[], None));
        assert_eq!(judge(&bridged, chat(Some("IS2"))), Err(Miss::OtherService));
        assert_eq!(judge(&bridged, chat(None)), Err(Miss::OtherService));
    }
}
