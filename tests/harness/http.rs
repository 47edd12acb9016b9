//! HTTP as a test needs it: status and body, and a callback signed without our own code.

use std::fmt::Write as _;
use std::sync::OnceLock;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use hmac::{Hmac, KeyInit as _, Mac as _};
use reqwest::{Client, Response, redirect};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

/// Longest single exchange; Twilio itself waits 15 s.
const REQUEST_LIMIT: Duration = Duration::from_secs(15);

/// A GET's status and body, with the account's credentials; the error as text.
pub(crate) async fn get(url: &str) -> Result<(u16, String), String> {
    let [(_, account), (_, token)] = super::ACCOUNT else {
        unreachable!("two entries");
    };
    let request = client().get(url).basic_auth(account, Some(token));
    let answer = request.send().await.map_err(whole)?;
    let status = answer.status().as_u16();
    Ok((status, answer.text().await.map_err(whole)?))
}

/// Another request with a JSON body: status and body, with the account's credentials.
pub(crate) async fn send_json(
    method: &str,
    url: &str,
    body: &serde_json::Value,
) -> Result<(u16, String), String> {
    let [(_, account), (_, token)] = super::ACCOUNT else {
        unreachable!("two entries");
    };
    let method = reqwest::Method::from_bytes(method.as_bytes()).expect("a method");
    let request = client()
        .request(method, url)
        .basic_auth(account, Some(token))
        .header("content-type", "application/json")
        .body(body.to_string());
    let answer = request.send().await.map_err(whole)?;
    let status = answer.status().as_u16();
    Ok((status, answer.text().await.map_err(whole)?))
}

/// The JSON of a GET that must succeed.
pub(crate) async fn get_json(url: &str) -> serde_json::Value {
    let (status, body) = get(url).await.unwrap();
    assert_eq!(status, 200, "GET {url}: {body}");
    serde_json::from_str(&body).unwrap_or_else(|error| panic!("GET {url}: {error}: {body}"))
}

/// A JSON callback's status.
pub(crate) async fn post_callback(client: &Client, callback: &Callback) -> Result<u16, String> {
    Ok(send_callback(client, callback).await?.status().as_u16())
}

/// A JSON callback's whole answer.
pub(crate) async fn send_callback(
    client: &Client,
    callback: &Callback,
) -> Result<Response, String> {
    client
        .post(&callback.url)
        .header("content-type", "application/json")
        .header("x-twilio-signature", &callback.signature)
        .header("i-twilio-idempotency-token", &callback.token)
        .body(callback.body.clone())
        .send()
        .await
        .map_err(whole)
}

/// A request as Twilio would send it.
#[derive(Debug, Clone)]
pub(crate) struct Callback {
    /// Where it is sent, query included.
    pub(crate) url: String,
    /// `X-Twilio-Signature`.
    pub(crate) signature: String,
    /// `I-Twilio-Idempotency-Token`.
    pub(crate) token: String,
    /// JSON.
    pub(crate) body: String,
}

/// Signs `body` for `public_url`, and gives the request to the same path at `connect` (`HOST:PORT`).
pub(crate) fn signed_callback(
    public_url: &str,
    connect: &str,
    key: &str,
    body: String,
) -> Callback {
    let mut hash = String::new();
    for byte in Sha256::digest(body.as_bytes()) {
        write!(hash, "{byte:02x}").expect("a String takes everything");
    }
    let url = format!("{public_url}?bodySHA256={hash}");
    let mut mac = Hmac::<Sha1>::new_from_slice(key.as_bytes()).expect("any length is a key");
    mac.update(url.as_bytes());
    Callback {
        signature: BASE64_STANDARD.encode(mac.finalize().into_bytes()),
        url: connect_to(&url, connect),
        token: hash,
        body,
    }
}

/// `url` with `connect` in place of its scheme and authority: what `--callback-connect` does.
pub(crate) fn connect_to(url: &str, connect: &str) -> String {
    let (_, rest) = url.split_once("://").expect("an absolute URL");
    let path = rest.find('/').expect("a URL with a path");
    format!("http://{connect}{}", &rest[path..])
}

/// A client that keeps its connections; for one test, whose runtime they belong to.
pub(crate) fn pooled_client() -> Client {
    // Only loopback is spoken to, so no proxy and no redirect.
    Client::builder()
        .no_proxy()
        .redirect(redirect::Policy::none())
        .timeout(REQUEST_LIMIT)
        .build()
        .expect("no setting here can be refused")
}

/// A client for single exchanges of any test: nothing stays open between two.
fn client() -> Client {
    static CLIENT: OnceLock<Client> = OnceLock::new();
    let build = || {
        Client::builder()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .timeout(REQUEST_LIMIT)
            .pool_max_idle_per_host(0)
            .build()
            .expect("no setting here can be refused")
    };
    CLIENT.get_or_init(build).clone()
}

/// An error with its causes, which reqwest's own text leaves out.
fn whole(error: reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        write!(text, ": {error}").expect("a String takes everything");
        cause = error.source();
    }
    text
}

#[test]
fn a_callback_is_signed_as_twilio_publishes_it() {
    // A vector of npm `twilio` 6.2 has a query before the hash; its own `sign.js` gave this one.
    let callback = signed_callback(
        "https://hooks.example.test/twilio",
        "127.0.0.1:1",
        "12345",
        r#"{"property": "value", "boolean": true}"#.to_owned(),
    );
    assert_eq!(callback.signature, "cAxPaLzZJPynD7IclPPvDLGrS00=");
    assert_eq!(
        callback.url,
        "http://127.0.0.1:1/twilio?bodySHA256=0a1ff7634d9ab3b95db5c9a2dfe9416e41502b283a80c7cf19632632f96e6620"
    );
}
