//! What Twilio's own code signs is accepted, and nothing else is.
//!
//! The signatures come from npm `twilio` (`tests/parts/node/sign.js`), so that an error of ours in signing
//! cannot agree with the same error in verifying.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::harness::http::{Callback, connect_to, pooled_client, post_callback};
use crate::harness::parts::{self, Kafka};
use crate::harness::process::{arg, run};
use crate::harness::roles::{PUBLIC_URL, Receiver, TOPIC};
use crate::harness::{AUTH_TOKEN, folder};

#[tokio::test]
async fn requests_signed_by_twilios_code_are_accepted_and_any_changed_byte_is_refused() {
    let Some(modules) = parts::node_modules() else {
        return;
    };
    let Some(kafka) = Kafka::start().await else {
        return;
    };
    let receiver = Receiver::start(&kafka).await;
    let client = pooled_client();
    let accept: Vec<(String, String)> = bodies()
        .into_iter()
        .map(|body| (PUBLIC_URL.to_owned(), body))
        .collect();
    let accepted = sign(modules, &receiver.address, AUTH_TOKEN, &accept);
    for callback in &accepted {
        check(&client, callback, 204, "as signed").await;
    }
    let genuine = accepted.first().unwrap();
    for changed in changed_requests(genuine) {
        check(&client, &changed, 403, "one byte changed in flight").await;
    }
    for changed in signed_for_other_urls(modules, &receiver.address, genuine) {
        check(&client, &changed, 403, "signed for a URL of one other byte").await;
    }
    let strange = [(PUBLIC_URL.to_owned(), genuine.body.clone())];
    for changed in sign(
        modules,
        &receiver.address,
        "another account's token",
        &strange,
    ) {
        check(&client, &changed, 403, "signed with another token").await;
    }
    let published: BTreeSet<Vec<u8>> = kafka.records(TOPIC).into_iter().map(|r| r.value).collect();
    let sent: BTreeSet<Vec<u8>> = accepted.into_iter().map(|c| c.body.into_bytes()).collect();
    assert_eq!(published, sent, "what was accepted, byte for byte");
}

async fn check(client: &reqwest::Client, callback: &Callback, want: u16, why: &str) {
    let status = post_callback(client, callback).await.unwrap();
    assert_eq!(status, want, "{why}: {callback:?}");
}

/// Events whose bytes a careless reader would change: escapes, spaces, order, text beyond ASCII.
fn bodies() -> Vec<String> {
    let texts = [
        "",
        "plain",
        "it's 100% \"ok\" \\ & <b>",
        "déjà vu 🚀\n\t",
        "a+b=c&d",
    ];
    let mut bodies: Vec<String> = texts
        .iter()
        .enumerate()
        .map(|(n, text)| {
            json!({
                "eventType": "COMMUNICATION_CREATED",
                "timestamp": "2026-11-22T10:00:00Z",
                "data": {
                    "id": format!("conv_communication_{n}"),
                    "conversationId": "conv_conversation_1",
                    "content": {"type": "TEXT", "text": text},
                },
            })
            .to_string()
        })
        .collect();
    bodies.push(
        "{ \"data\" : {\"status\":\"CLOSED\", \"id\":\"conv_conversation_1\"},\r\n\
         \"eventType\":\"CONVERSATION_\\u0055PDATED\" }\n"
            .to_owned(),
    );
    bodies
}

/// `genuine` with each byte of its hash, body and signature changed in turn, and with parts left out.
fn changed_requests(genuine: &Callback) -> Vec<Callback> {
    let mut changed = Vec::new();
    let query = genuine.url.find('?').unwrap() + 1;
    for at in query..genuine.url.len() {
        let url = with_other_byte(&genuine.url, at);
        changed.push(Callback {
            url,
            ..genuine.clone()
        });
    }
    for at in 0..genuine.body.len() {
        let body = with_other_byte(&genuine.body, at);
        changed.push(Callback {
            body,
            ..genuine.clone()
        });
    }
    for at in 0..genuine.signature.len() {
        let signature = with_other_byte(&genuine.signature, at);
        changed.push(Callback {
            signature,
            ..genuine.clone()
        });
    }
    changed.push(Callback {
        signature: with_unused_bit(&genuine.signature),
        ..genuine.clone()
    });
    changed.push(Callback {
        url: genuine.url[..query - 1].to_owned(),
        ..genuine.clone()
    });
    changed.push(Callback {
        signature: String::new(),
        ..genuine.clone()
    });
    changed.push(Callback {
        body: format!("{} ", genuine.body),
        ..genuine.clone()
    });
    changed
}

/// `genuine` with signatures that Twilio's code made for the public URL with each byte changed in turn.
fn signed_for_other_urls(modules: &Path, receiver: &str, genuine: &Callback) -> Vec<Callback> {
    // The scheme's separator has to stay for the SDK to see a URL at all.
    let host = PUBLIC_URL.find("://").unwrap() + 3;
    let requests: Vec<(String, String)> = (host..PUBLIC_URL.len())
        .map(|at| (with_other_byte(PUBLIC_URL, at), genuine.body.clone()))
        .chain([(PUBLIC_URL.replace("https", "http"), genuine.body.clone())])
        .collect();
    sign(modules, receiver, AUTH_TOKEN, &requests)
        .into_iter()
        .map(|other| Callback {
            url: genuine.url.clone(),
            ..other
        })
        .collect()
}

/// The ASCII text with another letter or digit in place of the byte at `at`; what stands there may be a
/// letter or not, and what replaces it is safe in a URL, a header and a body.
fn with_other_byte(text: &str, at: usize) -> String {
    let mut bytes = text.as_bytes().to_vec();
    bytes[at] = if bytes[at] == b'b' { b'c' } else { b'b' };
    String::from_utf8(bytes).expect("ASCII in place of ASCII")
}

/// The base64 of the same 20 bytes, with one of the two bits set that their last letter does not need: a
/// reader that ignores those takes two texts for one signature.
fn with_unused_bit(signature: &str) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bytes = signature.as_bytes().to_vec();
    let last = bytes.len() - 2;
    let value = ALPHABET.iter().position(|&letter| letter == bytes[last]);
    bytes[last] = ALPHABET[value.expect("base64") | 1];
    String::from_utf8(bytes).expect("ASCII in place of ASCII")
}

/// Has Twilio's code sign each (URL, body), as requests to `receiver`.
fn sign(
    modules: &Path,
    receiver: &str,
    token: &str,
    requests: &[(String, String)],
) -> Vec<Callback> {
    let folder = folder();
    let input = folder.path().join("requests.jsonl");
    let mut file = File::create(&input).unwrap();
    for (url, body) in requests {
        writeln!(
            file,
            "{}",
            json!({"token": token, "url": url, "body": body})
        )
        .unwrap();
    }
    let script = parts::parts_folder().join("node/sign.js");
    let mut node = Command::new("node");
    node.arg(arg(&script))
        .env("NODE_PATH", modules)
        .stdin(File::open(&input).unwrap());
    let printed = run("sign.js", &mut node).unwrap_or_else(|why| panic!("{why}"));
    let signed: Vec<Callback> = printed
        .lines()
        .zip(requests)
        .map(|(line, (_, body))| {
            let answer: serde_json::Value = serde_json::from_str(line).unwrap();
            Callback {
                url: connect_to(answer["url"].as_str().unwrap(), receiver),
                signature: answer["signature"].as_str().unwrap().to_owned(),
                token: "10000000-0000-4000-8000-000000000001".to_owned(),
                body: body.clone(),
            }
        })
        .collect();
    assert_eq!(signed.len(), requests.len(), "an answer for each request");
    signed
}
