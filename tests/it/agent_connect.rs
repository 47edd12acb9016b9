//! Twilio's agent-connect package takes the emulator for the service, both ways.
//!
//! Its conversation client asks (`agent_connect.py`) and its callback server is told
//! (`agent_connect_server.py`), each as published but for the base URL. Its models refuse answers and
//! callbacks that lack what they need, and its server refuses what is not signed as Twilio signs.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::http::{Callback, get_json, pooled_client, post_callback, signed_callback};
use crate::harness::parts;
use crate::harness::process::{Process, run_with};
use crate::harness::roles::Orchestrator;
use crate::harness::{ACCOUNT_SID, API_KEY, AUTH_TOKEN, free_port, until};

/// The package's own phone number, and that of a customer.
const AGENT: &str = "+15551234567";
const CUSTOMER: &str = "+15551230001";
/// Longest time until a callback was answered, or the application heard of it.
const CALLBACK_LIMIT: Duration = Duration::from_secs(30);

#[tokio::test]
async fn the_agent_connect_client_is_answered_as_its_models_demand() {
    let Some(python) = parts::python() else {
        return;
    };
    let emulator = Orchestrator::with(1, 12, &[]).await;
    emulator.closed(1).await;
    let configuration = emulator.configure(&configuration(&[])).await;
    let plan = client_plan(&emulator, &configuration);
    let mut script = Command::new(python);
    script
        .args(["-B", "tests/it/agent_connect.py"])
        .env("TAC_ANALYTICS_DISABLED", "true");
    let printed = run_with("agent-connect", &mut script, &plan.to_string());
    let said: Value = serde_json::from_str(&printed).unwrap();
    let id = &said["conversation"]["id"];

    assert_eq!(said["configuration"]["id"], *configuration);
    assert_eq!(said["configuration"]["displayName"], "agent connect");
    assert_eq!(said["conversation"]["name"], plan["name"]);
    assert_eq!(said["conversation"]["status"], "ACTIVE");
    assert_eq!(
        said["reused"],
        json!([id, true]),
        "409 names the living one"
    );
    assert_eq!(said["agent"]["type"], "AI_AGENT");
    assert_eq!(said["agent"]["addresses"], json!([plan["agentAddress"]]));
    assert_eq!(said["promoted"]["id"], said["agent"]["id"]);
    assert_eq!(said["promoted"]["name"], "Echo");
    assert_eq!(said["promoted"]["type"], "AGENT");
    let types = |all: &Value| -> Vec<String> {
        let all = all.as_array().unwrap().iter();
        all.map(|one| one["type"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(
        types(&said["participants"]),
        ["CUSTOMER", "HUMAN_AGENT", "AGENT"]
    );

    let communications = said["communications"].as_array().unwrap();
    let asked = plan["communications"].as_array().unwrap();
    for (said, asked) in communications.iter().zip(asked) {
        assert_eq!(said["content"], asked["content"]);
        assert_eq!(said["conversationId"], *id);
    }
    assert_eq!(
        said["listed"], said["communications"],
        "lists are whole here"
    );
    assert_eq!(said["ofChannel"], json!([communications[1]]));
    assert_eq!(said["firstOnly"], json!([communications[0]]));
    assert_eq!(said["active"].as_array().unwrap().len(), 1);
    assert_eq!(said["active"][0]["id"], *id);
    assert_eq!(said["inactive"]["status"], "INACTIVE");
    assert_eq!(
        said["inactive"].get("name"),
        None,
        "PUT without a name takes it away"
    );
    assert_eq!(said["closed"]["status"], "CLOSED");
    assert_eq!(said["closed"]["name"], "Solved");
    assert_eq!(said["unknown"], 404);
}

#[tokio::test]
async fn the_agent_connect_server_accepts_our_callbacks_and_refuses_forged_ones() {
    let Some(python) = parts::python() else {
        return;
    };
    let port = free_port();
    let connect = format!("127.0.0.1:{port}");
    let flags = ["--callback-connect", &connect];
    let emulator = Orchestrator::with(1, 13, &flags).await;
    emulator.closed(1).await;
    // No proxy ends TLS between the two, so that the package sees the scheme that was signed.
    let url = "http://hooks.example.test/webhook";
    let configuration = emulator.configure(&configuration(&[url])).await;
    let mut server = server(python, &emulator, &configuration, port).await;

    let conversation = begin(&emulator, &configuration).await;
    let message = json!({"message": MESSAGE, "conversation": conversation});
    hears(&mut server, &message).await;
    let close = json!({"status": "CLOSED"});
    let path = format!("/Conversations/{conversation}");
    emulator.send("PATCH", &path, &close).await;
    hears(&mut server, &json!({"ended": conversation})).await;
    until("every callback is answered", CALLBACK_LIMIT, async || {
        let deliveries = deliveries(&emulator, &conversation).await;
        for delivery in &deliveries {
            assert_eq!(delivery["accepted"], true, "{delivery}");
            let first = &delivery["attempts"][0];
            assert_eq!(first["status"], 200, "at the first try: {delivery}");
        }
        let seen: BTreeSet<&str> = deliveries.iter().map(|d| text(&d["eventType"])).collect();
        match seen == BTreeSet::from(EVENT_TYPES) && deliveries.len() >= CALLBACKS {
            true => Ok(()),
            false => Err(format!("{} of {CALLBACKS}: {seen:?}", deliveries.len())),
        }
    })
    .await;
    refuses_what_is_forged(&connect).await;
}

const MESSAGE: &str = "Is anybody there? 🤖 <b>";
const EVENT_TYPES: [&str; 6] = [
    "COMMUNICATION_CREATED",
    "COMMUNICATION_UPDATED",
    "CONVERSATION_CREATED",
    "CONVERSATION_UPDATED",
    "PARTICIPANT_ADDED",
    "PARTICIPANT_UPDATED",
];
/// The two participants' events and one of each other type.
const CALLBACKS: usize = 7;

/// Something for each type of event, over REST, but for the close.
async fn begin(emulator: &Orchestrator, configuration: &str) -> String {
    let new = json!({
        "configurationId": configuration,
        "participants": [
            participant("Kiran", "CUSTOMER", CUSTOMER),
            participant("Agent", "AI_AGENT", AGENT),
        ],
    });
    let conversation = emulator.send("POST", "/Conversations", &new).await;
    let id = text(&conversation["id"]).to_owned();
    let path = format!("/Conversations/{id}");
    let customer = text(&conversation["participants"][0]["id"]);
    let renamed = participant("Kiran A.", "CUSTOMER", CUSTOMER);
    emulator
        .send("PUT", &format!("{path}/Participants/{customer}"), &renamed)
        .await;
    let mut message = communication("SM00000000000000000000000000000001", MESSAGE);
    let communications = format!("{path}/Communications");
    emulator.send("POST", &communications, &message).await;
    message["recipients"][0]["deliveryStatus"] = json!("DELIVERED");
    emulator.send("POST", &communications, &message).await;
    id
}

/// Waits until the package's application was told `line`.
async fn hears(server: &mut Process, line: &Value) {
    until("the application hears", CALLBACK_LIMIT, async || {
        let lines = server.stdout();
        let mut told = lines
            .lines()
            .filter_map(|told| serde_json::from_str(told).ok());
        match told.any(|told: Value| told == *line) {
            true => Ok(()),
            false => Err(lines),
        }
    })
    .await;
}

async fn refuses_what_is_forged(connect: &str) {
    let url = format!("http://{connect}/webhook");
    let body = json!({
        "eventType": "CONVERSATION_UPDATED",
        "timestamp": "2026-11-22T10:00:00Z",
        "data": {"id": "conv_conversation_1", "accountId": ACCOUNT_SID, "status": "CLOSED"},
    });
    let signed = |key| signed_callback(&url, connect, key, body.to_string());
    let genuine = signed(AUTH_TOKEN);
    let forged = [
        signed("another account's token"),
        Callback {
            body: body.to_string().replace("CLOSED", "ACTIVE"),
            ..genuine.clone()
        },
        Callback {
            signature: String::new(),
            ..genuine.clone()
        },
    ];
    let client = pooled_client();
    assert_eq!(post_callback(&client, &genuine).await, Ok(200));
    for callback in forged {
        assert_eq!(
            post_callback(&client, &callback).await,
            Ok(403),
            "{callback:?}"
        );
    }
}

async fn server(
    python: &std::path::Path,
    emulator: &Orchestrator,
    configuration: &str,
    port: u16,
) -> Process {
    let plan = json!({
        "baseUrl": format!("http://{}", emulator.address),
        "accountSid": ACCOUNT_SID,
        "authToken": AUTH_TOKEN,
        "apiKey": API_KEY.0,
        "apiSecret": API_KEY.1,
        "configurationId": configuration,
        "phoneNumber": AGENT,
        "port": port,
    });
    let mut command = Command::new(python);
    command
        .args(["-B", "tests/it/agent_connect_server.py", &plan.to_string()])
        .env("TAC_ANALYTICS_DISABLED", "true")
        .env("NO_PROXY", "127.0.0.1")
        .env("no_proxy", "127.0.0.1");
    let mut server = Process::spawn("agent-connect server", &mut command);
    server
        .wait_answer(&format!("http://127.0.0.1:{port}/health"))
        .await;
    server
}

async fn deliveries(emulator: &Orchestrator, conversation: &str) -> Vec<Value> {
    let all = get_json(&format!("http://{}/emulator/deliveries", emulator.address)).await;
    let all = all["deliveries"].as_array().unwrap().iter();
    all.filter(|one| one["conversationId"] == conversation)
        .cloned()
        .collect()
}

fn configuration(callbacks: &[&str]) -> Value {
    let callbacks: Vec<Value> = callbacks.iter().map(|url| json!({"url": url})).collect();
    json!({
        "displayName": "agent connect",
        "description": "Grouped by addresses, as the package needs it",
        "conversationGroupingType": "GROUP_BY_PARTICIPANT_ADDRESSES",
        "memoryStoreId": "mem_store_0123456789abcdefghjkmnpqrs",
        "statusCallbacks": callbacks,
        "channelSettings": {"SMS": {"statusTimeouts": {"inactive": 10, "closed": 60}}},
    })
}

fn client_plan(emulator: &Orchestrator, configuration: &str) -> Value {
    let mut second = communication("GT00000000000000000000000000000001/1", "hello there");
    second["channelId"] = json!("CA00000000000000000000000000000001");
    second["content"] = json!({
        "type": "TRANSCRIPTION",
        "text": "hello there",
        "transcription": {
            "channel": 0,
            "confidence": 0.875,
            "engine": "google",
            "words": [
                {
                    "text": "hello",
                    "startTime": "2026-11-20T10:05:00.25Z",
                    "endTime": "2026-11-20T10:05:00.75Z",
                },
                {"text": "there"},
            ],
        },
    });
    json!({
        "baseUrl": format!("http://{}", emulator.address),
        "apiKey": API_KEY.0,
        "apiSecret": API_KEY.1,
        "configurationId": configuration,
        "name": "Support chat for Kiran",
        "participants": [
            participant("Kiran", "CUSTOMER", CUSTOMER),
            participant("Kai", "HUMAN_AGENT", AGENT),
        ],
        "agentAddress": {"channel": "SMS", "address": "+15551239999"},
        "communications": [communication("SM00000000000000000000000000000001", MESSAGE), second],
        "channelId": "CA00000000000000000000000000000001",
    })
}

fn participant(name: &str, kind: &str, address: &str) -> Value {
    let addresses = json!([{"channel": "SMS", "address": address}]);
    json!({"name": name, "type": kind, "addresses": addresses})
}

fn communication(resource: &str, message: &str) -> Value {
    json!({
        "author": {"address": CUSTOMER, "channel": "SMS"},
        "content": {"type": "TEXT", "text": message},
        "recipients": [{"address": AGENT, "channel": "SMS"}],
        "resourceId": resource,
    })
}

fn text(value: &Value) -> &str {
    value
        .as_str()
        .unwrap_or_else(|| panic!("a text, not {value}"))
}
