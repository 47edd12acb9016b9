//! Twilio's own SDKs for Node.js and Python take the emulator for the service.
//!
//! Both are unmodified but for the base URL, and make every step of Twilio's two documents on Conversation
//! Orchestrator: `tests/parts/node/orchestrator.js` and `orchestrator.py` print what the SDK's own objects
//! said, under the same names, so that one comparison is good for both.

use std::collections::BTreeSet;
use std::process::Command;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::harness::parts;
use crate::harness::process::{arg, run_with};
use crate::harness::roles::Orchestrator;
use crate::harness::{ACCOUNT_SID, API_KEY, without_nulls};

/// Conversations that the emulator made before the SDK comes: several pages of 7.
const CONVERSATIONS: usize = 24;
/// Of how many of them the communications are listed.
const WHOLE_CONVERSATIONS: usize = 5;
/// The call of a communication.
const CALL: &str = "CA00000000000000000000000000000001";
/// Configurations of an account.
const CONFIGURATION_LIMIT: u64 = 10;

#[tokio::test]
async fn npm_twilio_makes_every_step_of_the_documents() {
    let Some(modules) = parts::node_modules() else {
        return;
    };
    let mut node = Command::new("node");
    node.arg(arg(&parts::parts_folder().join("node/orchestrator.js")))
        .env("NODE_PATH", modules);
    every_step("npm twilio", node).await;
}

#[tokio::test]
async fn pypi_twilio_makes_every_step_of_the_documents() {
    let Some(python) = parts::python() else {
        return;
    };
    let mut script = Command::new(python);
    script.args(["-B", "tests/it/orchestrator.py"]);
    every_step("PyPI twilio", script).await;
}

async fn every_step(sdk: &str, mut script: Command) {
    let emulator = Orchestrator::with(CONVERSATIONS, 11, &[]).await;
    let truth = emulator.closed(CONVERSATIONS).await;
    let plan = plan(&format!("http://{}", emulator.address));
    let printed = run_with(sdk, &mut script, &plan.to_string());
    let said =
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{sdk}: {error}: {printed}"));
    let report = Report {
        plan,
        said: without_nulls(said),
    };
    report.configuration();
    report.conversation();
    report.lists(&truth);
    report.replaced();
    report.refused();
    report.closed_and_deleted();
    report.limit();
}

/// What the SDK shall ask for. The configurations and the conversation are those of the documents.
fn plan(base_url: &str) -> Value {
    json!({
        "baseUrl": base_url,
        "accountSid": ACCOUNT_SID,
        "apiKey": API_KEY.0,
        "apiSecret": API_KEY.1,
        "configuration": {
            "displayName": "active-conversations",
            "description": "Configuration for API-created conversations",
            "conversationGroupingType": "GROUP_BY_PROFILE",
            "memoryStoreId": "mem_store_0123456789abcdefghjkmnpqrs",
            "memoryExtractionEnabled": true,
            "intelligenceConfigurationIds": ["intelligence_configuration_1"],
            "statusCallbacks": [],
            "channelSettings": {
                "SMS": {
                    "captureRules": [
                        {"from": "+15551234567", "to": "*", "metadata": {}},
                        {"from": "*", "to": "+15551234567", "metadata": {}},
                    ],
                    "statusTimeouts": {"inactive": 30, "closed": 1440},
                },
                "VOICE": {
                    "captureRules": [{"from": "*", "to": "+15551234567", "metadata": {}}],
                },
            },
        },
        "keyed": {
            "displayName": "my-app-config",
            "description": "Made twice with one key",
            "conversationGroupingType": "GROUP_BY_PROFILE",
            "memoryStoreId": "mem_store_zyxwvtsrqpnmkjhgfedcba9876",
        },
        "idempotencyKey": "2f1b1a0e-4a1e-4b1d-9a53-6b8f2f3c9d10",
        "conversation": {
            "name": "Support chat for Kiran",
            "participants": [
                participant("Kiran A.", "CUSTOMER", "+15551230001"),
                participant("Kai B.", "HUMAN_AGENT", "+15551234567"),
            ],
            "metadata": {"case": "4711"},
        },
        "conflicting": [
            participant("Kai again", "HUMAN_AGENT", "+15551234567"),
            participant("Kiran again", "CUSTOMER", "+15551230001"),
        ],
        "participant": participant("Écho 🚀", "AI_AGENT", "+15551239999"),
        "communications": communications(),
        "channelId": CALL,
        "wholeConversations": WHOLE_CONVERSATIONS,
        "conversationUpdate": {"name": "Solved", "status": "ACTIVE", "metadata": {"case": "4712"}},
        "participantUpdate": participant("Echo", "AI_AGENT", "+15551239999"),
        "configurationFields": [
            "displayName", "description", "conversationGroupingType", "memoryStoreId",
            "memoryExtractionEnabled", "intelligenceConfigurationIds", "statusCallbacks",
            "channelSettings", "conversationsV1Bridge",
        ],
        "ruleChannel": "VOICE",
        "rule": {"from": "*", "to": "agent-1", "metadata": {"callType": "CLIENT"}},
        "forgotten": ["channelSettings", "description", "memoryStoreId"],
        "configurationLimit": CONFIGURATION_LIMIT,
    })
}

/// A message, and something said on a call.
fn communications() -> Value {
    json!([
        {
            "author": {"address": "+15551230001", "channel": "SMS"},
            "content": {"type": "TEXT", "text": "Grüße, I can't log in <b>🚪</b>\n"},
            "recipients": [{"address": "+15551234567", "channel": "SMS"}],
            "resourceId": "SM00000000000000000000000000000001",
            "occurredAt": "2026-11-20T10:00:00Z",
        },
        {
            "author": {"address": "+15551230001", "channel": "VOICE"},
            "content": {
                "type": "TRANSCRIPTION",
                "text": "hello there",
                "transcription": {
                    "channel": 0,
                    "confidence": 0.875,
                    "engine": "google",
                },
            },
            "recipients": [{"address": "+15551234567", "channel": "VOICE"}],
            "channelId": CALL,
            "resourceId": "GT00000000000000000000000000000001/1",
        },
    ])
}

fn participant(name: &str, kind: &str, address: &str) -> Value {
    let addresses = json!([{"channel": "SMS", "address": address}]);
    json!({"name": name, "type": kind, "addresses": addresses})
}

/// What was asked for and what came of it. Nulls are left out of both: an SDK cannot tell them from nothing.
struct Report {
    plan: Value,
    said: Value,
}

impl Report {
    fn configuration(&self) {
        let accepted = &self.said["accepted"];
        let operation = &self.said["operation"];
        let url = text(&accepted["statusUrl"]);
        let base = text(&self.plan["baseUrl"]);
        assert!(url.starts_with(base), "on the API's own origin: {url}");
        assert!(accepted.get("id").is_none(), "no id yet: {accepted}");
        assert_eq!(operation["status"], "COMPLETED", "{operation}");
        assert_eq!(operation["statusUrl"], accepted["statusUrl"]);
        assert!(
            url.ends_with(text(&operation["operationId"])),
            "{operation}"
        );
        assert!(operation.get("error").is_none(), "{operation}");
        assert!(date(operation, "createdAt") <= date(operation, "completedAt"));

        let configuration = &self.said["configuration"];
        assert_eq!(configuration["id"], self.said["configurationId"]);
        assert_eq!(configuration["version"], 1, "{configuration}");
        assert!(date(configuration, "createdAt") <= date(configuration, "updatedAt"));
        self.holds(configuration, &self.plan["configuration"]);

        let keyed = &self.said["keyed"];
        assert_eq!(keyed["first"], keyed["again"], "one key, one operation");
    }

    fn conversation(&self) {
        let conversation = &self.said["conversation"];
        let mut wanted = self.plan["conversation"].clone();
        wanted["configurationId"] = self.said["configurationId"].clone();
        wanted["status"] = json!("ACTIVE");
        wanted["accountId"] = json!(ACCOUNT_SID);
        self.holds(conversation, &wanted);
        assert!(text(&conversation["id"]).starts_with("conv_conversation_"));
        assert!(date(conversation, "createdAt") <= date(conversation, "updatedAt"));
        let pinned = &self.plan["configuration"]["conversationGroupingType"];
        assert_eq!(
            &conversation["configuration"]["conversationGroupingType"],
            pinned
        );

        let joined = &self.said["participant"];
        self.holds(joined, &self.plan["participant"]);
        self.holds(
            joined,
            &json!({"conversationId": conversation["id"], "accountId": ACCOUNT_SID}),
        );
        date(joined, "createdAt");

        let communications = self.said["communications"].as_array().unwrap();
        for (said, asked) in communications
            .iter()
            .zip(list(&self.plan["communications"]))
        {
            let mut wanted = asked.clone();
            let occurred = wanted.as_object_mut().unwrap().remove("occurredAt");
            self.holds(said, &wanted);
            self.holds(
                said,
                &json!({"conversationId": conversation["id"], "accountId": ACCOUNT_SID}),
            );
            date(said, "createdAt");
            let at = date(said, "occurredAt");
            if let Some(occurred) = occurred {
                assert_eq!(at, text(&occurred).parse().unwrap(), "{said}");
            }
        }

        let conflict = &self.said["conflict"];
        assert_eq!(conflict["status"], 409, "the same customer: {conflict}");
        assert_eq!(conflict["conflictingId"], conversation["id"]);

        let read = &self.said["read"];
        assert_eq!(read["participant"], *joined);
        assert_eq!(read["communications"], self.said["communications"]);
        let participants = list(&read["conversation"]["participants"]);
        assert_eq!(
            participants.len(),
            3,
            "with the one who joined: {participants:?}"
        );
    }

    fn lists(&self, truth: &[Value]) {
        let lists = &self.said["lists"];
        let own = &self.said["conversation"]["id"];
        let closed: Vec<&Value> = truth
            .iter()
            .map(|conversation| &conversation["id"])
            .collect();
        same("closed", &lists["closed"], &closed);
        same("active", &lists["active"], &[own]);
        same(
            "of two statuses",
            &lists["activeAndClosed"],
            &[&closed[..], &[own]].concat(),
        );
        same("of one call", &lists["conversationsOfChannel"], &[own]);
        let limited = list(&lists["limited"]);
        assert_eq!(
            limited,
            &list(&lists["closed"])[..3],
            "the limit is the SDK's"
        );
        assert_eq!(lists["pageSize"], 7);
        assert_eq!(lists["pageBackIsTheSame"], true);
        assert_eq!(lists["nothingBeforeTheFirst"], true);

        let of_store = &lists["configurationsOfStore"];
        same("of one store", of_store, &[&self.said["configurationId"]]);
        let configurations = list(&lists["configurations"]);
        for own in ["configurationId", "keyedId"] {
            assert!(configurations.contains(&self.said[own]), "{own}: {lists}");
        }

        let communications = ids(&self.said["communications"]);
        same("communications", &lists["communications"], &communications);
        same(
            "of the call",
            &lists["communicationsOfChannel"],
            &communications[1..],
        );
        let wanted = list(&self.said["read"]["conversation"]["participants"]);
        let names = |all: &[Value]| -> Vec<String> {
            all.iter()
                .map(|one| text(&one["name"]).to_owned())
                .collect()
        };
        assert_eq!(names(list(&lists["participants"])), names(wanted));

        let whole = lists["ofOneConversation"].as_object().unwrap();
        assert_eq!(whole.len(), WHOLE_CONVERSATIONS);
        for (id, communications) in whole {
            let truth = truth.iter().find(|one| one["id"] == **id).unwrap();
            same(id, communications, &ids(&truth["communications"]));
        }
    }

    fn replaced(&self) {
        let replaced = &self.said["replaced"];
        self.holds(&replaced["conversation"], &self.plan["conversationUpdate"]);
        assert_eq!(
            replaced["conversation"]["id"],
            self.said["conversation"]["id"]
        );
        self.holds(&replaced["participant"], &self.plan["participantUpdate"]);
        assert_eq!(
            replaced["participant"]["id"],
            self.said["participant"]["id"]
        );

        let mut wanted = self.plan["configuration"].clone();
        let channel = text(&self.plan["ruleChannel"]);
        let rules = &mut wanted["channelSettings"][channel]["captureRules"];
        rules
            .as_array_mut()
            .unwrap()
            .push(self.plan["rule"].clone());
        self.holds(&replaced["configuration"], &wanted);
        assert_eq!(replaced["configuration"]["version"], 2);

        let careless = &replaced["careless"];
        assert_eq!(
            replaced["carelessOperation"]["status"], "COMPLETED",
            "accepted silently"
        );
        assert_eq!(careless["version"], 3);
        assert_eq!(
            careless["displayName"], wanted["displayName"],
            "what was sent stays"
        );
        for field in list(&self.plan["forgotten"]) {
            let empty = match &careless[text(field)] {
                Value::Null => true,
                Value::String(left) => left.is_empty(),
                Value::Object(left) => left.is_empty(),
                _ => false,
            };
            assert!(empty, "{field} was left out, so it is gone: {careless}");
        }
    }

    fn refused(&self) {
        let refused = &self.said["refused"];
        for (what, status, code) in [
            ("credentials", 401, Some(20_003)),
            ("conversation", 404, Some(20_404)),
            ("communication", 404, Some(20_404)),
            ("participant", 404, Some(20_404)),
            ("configuration", 404, Some(20_404)),
            ("operation", 404, Some(20_404)),
            ("pageSize", 400, None),
            ("status", 400, None),
            ("pageToken", 400, None),
            ("withoutStore", 400, None),
            ("patchedConfiguration", 405, Some(20_004)),
            ("unknownConfiguration", 404, None),
            ("form", 415, Some(20_415)),
            ("reopened", 409, None),
            ("joinedClosed", 409, None),
            ("saidInClosed", 409, None),
        ] {
            let got = &refused[what];
            assert_eq!(got["status"], status, "{what}: {got}");
            assert!(got["code"].is_u64(), "{what}: {got}");
            if let Some(code) = code {
                assert_eq!(got["code"], code, "{what}: {got}");
            }
        }
        let message = text(&refused["withoutStore"]["message"]);
        assert!(message.contains("memoryStoreId"), "{message}");
    }

    fn closed_and_deleted(&self) {
        let closed = &self.said["closed"];
        assert_eq!(closed["status"], "CLOSED", "{closed}");
        assert_eq!(closed["name"], self.plan["conversationUpdate"]["name"]);
        let deleted = &self.said["deleted"];
        // The Python SDK gives no operation of a delete.
        if let Some(operation) = deleted.get("operation") {
            assert_eq!(operation["status"], "COMPLETED", "{operation}");
            let related = &operation["related"]["conversationId"];
            assert_eq!(*related, self.said["conversation"]["id"]);
        }
        assert_eq!(deleted["conversation"]["status"], 404, "{deleted}");
        assert_eq!(deleted["configuration"]["status"], 404, "{deleted}");
    }

    fn limit(&self) {
        let limit = &self.said["limit"];
        assert_eq!(limit["configurations"], CONFIGURATION_LIMIT, "{limit}");
        let failed = &limit["failed"];
        assert_eq!(failed["status"], "FAILED", "{limit}");
        assert!(failed["error"].is_object(), "with a reason: {failed}");
        assert!(
            failed["related"].get("configurationId").is_none(),
            "{failed}"
        );
    }

    /// `said` has everything of `wanted`, at any depth; it may have more.
    fn holds(&self, said: &Value, wanted: &Value) {
        let missing = difference("", said, &without_nulls(wanted.clone()));
        assert!(missing.is_empty(), "{missing:#?}\nin {said:#}");
    }
}

/// Where `said` lacks something of `wanted`.
fn difference(path: &str, said: &Value, wanted: &Value) -> Vec<String> {
    match (said, wanted) {
        (Value::Object(said), Value::Object(wanted)) => wanted
            .iter()
            .flat_map(|(name, wanted)| {
                let said = said.get(name).unwrap_or(&Value::Null);
                difference(&format!("{path}/{name}"), said, wanted)
            })
            .collect(),
        (Value::Array(said), Value::Array(wanted)) if said.len() == wanted.len() => said
            .iter()
            .zip(wanted)
            .enumerate()
            .flat_map(|(n, (said, wanted))| difference(&format!("{path}/{n}"), said, wanted))
            .collect(),
        // An empty list or object that was asked for and nothing at all say the same.
        (Value::Null, Value::Array(wanted)) if wanted.is_empty() => Vec::new(),
        (Value::Null, Value::Object(wanted)) if wanted.is_empty() => Vec::new(),
        (said, wanted) if said == wanted => Vec::new(),
        (said, wanted) => vec![format!("{path}: {said} instead of {wanted}")],
    }
}

/// A field that the SDK read as a date.
fn date(said: &Value, field: &str) -> Timestamp {
    let date = said[field]["date"].as_str();
    let date = date.unwrap_or_else(|| panic!("{field} is no date to the SDK: {said}"));
    date.parse()
        .unwrap_or_else(|error| panic!("{date}: {error}"))
}

fn same(what: &str, said: &Value, wanted: &[&Value]) {
    let said: Vec<&Value> = list(said).iter().collect();
    assert_eq!(
        said.len(),
        wanted.len(),
        "{what}: nothing twice, nothing lost"
    );
    let ids =
        |all: &[&Value]| -> BTreeSet<String> { all.iter().map(|id| text(id).to_owned()).collect() };
    assert_eq!(ids(&said), ids(wanted), "{what}");
}

fn ids(resources: &Value) -> Vec<&Value> {
    list(resources)
        .iter()
        .map(|resource| &resource["id"])
        .collect()
}

fn list(value: &Value) -> &[Value] {
    value
        .as_array()
        .unwrap_or_else(|| panic!("a list, not {value}"))
}

fn text(value: &Value) -> &str {
    value
        .as_str()
        .unwrap_or_else(|| panic!("a text, not {value}"))
}
