//! The samples of Twilio's document that speak HTTP by themselves, with its capitals (`Status`, `PageSize`).

use std::process::Command;

use serde_json::json;

use crate::harness::parts;
use crate::harness::process::{arg, run_with};
use crate::harness::roles::Orchestrator;
use crate::harness::{ACCOUNT_SID, AUTH_TOKEN, without_nulls};

/// Living conversations: one more than the samples ask for.
const LIVING: usize = 11;
const PAGE_SIZE: usize = 10;

#[tokio::test]
async fn the_documents_samples_with_fetch_work_as_written() {
    let Some(modules) = parts::node_modules() else {
        return;
    };
    let mut node = Command::new("node");
    node.arg(arg(&parts::parts_folder().join("node/samples.js")))
        .env("NODE_PATH", modules);
    samples("samples.js", node).await;
}

#[tokio::test]
async fn the_documents_samples_with_requests_work_as_written() {
    let Some(python) = parts::python() else {
        return;
    };
    let mut script = Command::new(python);
    script.args(["-B", "tests/it/samples.py"]);
    samples("samples.py", script).await;
}

async fn samples(name: &str, mut script: Command) {
    let emulator = Orchestrator::with(1, 14, &[]).await;
    emulator.closed(1).await;
    let living = living(&emulator).await;
    let plan = json!({
        "baseUrl": format!("http://{}", emulator.address),
        "accountSid": ACCOUNT_SID,
        "authToken": AUTH_TOKEN,
        "configuration": {
            "displayName": "my-app-config",
            "description": "Production conversation config",
            "conversationGroupingType": "GROUP_BY_PROFILE",
            "memoryStoreId": "mem_store_0123456789abcdefghjkmnpqrs",
            "memoryExtractionEnabled": true,
            "channelSettings": {
                "SMS": {
                    "captureRules": [
                        {"from": "+15551234567", "to": "*", "metadata": {}},
                        {"from": "*", "to": "+15551234567", "metadata": {}},
                    ],
                    "statusTimeouts": {"inactive": 10, "closed": 60},
                },
                "VOICE": {
                    "captureRules": [{"from": "*", "to": "+15551234567", "metadata": {}}],
                },
            },
        },
        "rule": {"from": "*", "to": "+15551234567", "metadata": {"callType": "CLIENT"}},
        "intelligence": "intelligence_configuration_1",
    });
    let printed = run_with(name, &mut script, &plan.to_string());
    let said = without_nulls(serde_json::from_str(&printed).unwrap());

    assert_eq!(said["created"]["status"], 202, "{said}");
    assert_eq!(said["created"]["body"].get("id"), None, "without an id");
    let asked = plan["configuration"].as_object().unwrap();
    for (field, wanted) in asked {
        assert_eq!(said["configuration"][field], *wanted, "{field}");
    }
    assert_eq!(said["updated"], 202);
    let mut rules = asked["channelSettings"]["VOICE"]["captureRules"].clone();
    rules.as_array_mut().unwrap().push(plan["rule"].clone());
    for after in ["afterUpdate", "afterLink"] {
        let voice = &said[after]["channelSettings"]["VOICE"];
        assert_eq!(voice["captureRules"], rules, "{after}");
        assert_eq!(
            said[after]["memoryStoreId"], asked["memoryStoreId"],
            "{after}"
        );
    }
    assert_eq!(said["linked"], 202);
    let linked = json!([plan["intelligence"]]);
    assert_eq!(said["afterLink"]["intelligenceConfigurationIds"], linked);

    let listed = said["listed"].as_array().unwrap();
    assert_eq!(listed.len(), PAGE_SIZE, "as many as were asked for");
    for conversation in listed {
        let id = conversation["id"].as_str().unwrap();
        assert!(living.iter().any(|one| one == id), "{id} is living");
        assert_eq!(conversation["communications"], 1, "{id}");
    }
    assert_eq!(said["more"], true);
    assert_eq!(said["closed"]["status"], 200);
    assert_eq!(said["closed"]["body"]["status"], "CLOSED");
}

/// Living conversations with something said in each.
async fn living(emulator: &Orchestrator) -> Vec<String> {
    let configuration = json!({
        "displayName": "living",
        "conversationGroupingType": "GROUP_BY_PARTICIPANT_ADDRESSES",
        "memoryStoreId": "mem_store_0123456789abcdefghjkmnpqrs",
    });
    let configuration = emulator.configure(&configuration).await;
    let mut living = Vec::new();
    for n in 0..LIVING {
        let customer = format!("+155598765{n:02}");
        let new = json!({
            "configurationId": configuration,
            "participants": [
                {"type": "CUSTOMER", "addresses": [{"channel": "SMS", "address": customer}]},
            ],
        });
        let conversation = emulator.send("POST", "/Conversations", &new).await;
        let id = conversation["id"].as_str().unwrap().to_owned();
        let message = json!({
            "author": {"address": customer, "channel": "SMS"},
            "content": {"type": "TEXT", "text": "hello"},
            "recipients": [],
        });
        let path = format!("/Conversations/{id}/Communications");
        emulator.send("POST", &path, &message).await;
        living.push(id);
    }
    living
}
