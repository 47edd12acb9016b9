//! Bad and good requests, each with its status and what of it reached Kafka: nothing, or every byte.

use super::*;

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    Nothing,
    Event,
    /// With this reason.
    Quarantine(&'static str),
}
use Kept::{Event as AsEvent, Nothing, Quarantine};

struct Case {
    name: String,
    wire: Vec<u8>,
    /// What the body is, for requests that are kept.
    body: Vec<u8>,
    status: u16,
    kept: Kept,
}

fn case(name: impl Into<String>, wire: Wire, status: u16, kept: Kept) -> Case {
    Case {
        name: name.into(),
        body: wire.body.clone(),
        wire: wire.bytes(),
        status,
        kept,
    }
}

fn refused(name: impl Into<String>, wire: Wire, status: u16) -> Case {
    case(name, wire, status, Nothing)
}

fn raw(name: impl Into<String>, wire: impl Into<Vec<u8>>, status: u16) -> Case {
    Case {
        name: name.into(),
        wire: wire.into(),
        body: Vec::new(),
        status,
        kept: Nothing,
    }
}

fn good() -> Wire {
    Wire::signed(event("c1"))
}

/// Signed for `url`, which need not be ours, with `key`.
fn signed_for(url: &str, key: &SigningKey) -> Wire {
    let wire = good();
    let url = signed_url(url, &wire.body);
    wire.instead("X-Twilio-Signature", sign(key, &url))
}

fn form(body: &str, signed_text: &str) -> Wire {
    let mut wire = good()
        .to(PATH)
        .instead(
            "Content-Type",
            "application/x-www-form-urlencoded; charset=UTF-8",
        )
        .instead("Content-Length", body.len().to_string())
        .instead(
            "X-Twilio-Signature",
            sign(&key(), &format!("{PUBLIC_URL}{signed_text}")),
        );
    wire.body = body.into();
    wire
}

fn signatures() -> Vec<Case> {
    let attacker = SigningKey::new(Algorithm::Sha1, "guess").unwrap();
    let sha256 = SigningKey::new(Algorithm::Sha256, SECRET).unwrap();
    let good_signature = sign(&key(), &signed_url(PUBLIC_URL, event("c1").as_bytes()));
    let without_hash = sign(&key(), PUBLIC_URL);
    let mut altered = good();
    altered.body[2] ^= 1;
    let mut cases = vec![
        case("signed", good(), 204, AsEvent),
        refused("no signature", good().without("X-Twilio-Signature"), 403),
        refused(
            "two signatures, one right",
            good().with("X-Twilio-Signature", "x"),
            403,
        ),
        refused("another key", signed_for(PUBLIC_URL, &attacker), 403),
        refused("another digest", signed_for(PUBLIC_URL, &sha256), 403),
        refused(
            "no hash of the body",
            good()
                .to(PATH)
                .instead("X-Twilio-Signature", without_hash.clone()),
            403,
        ),
        refused("another body", altered, 403),
        refused(
            "query added",
            good().to(format!("{}&a=1", good().target)),
            403,
        ),
        refused(
            "query escaped",
            good().to(good().target.replace("SHA", "%53HA")),
            403,
        ),
        refused(
            "HTTP/1.0 without a body",
            Wire {
                version: "HTTP/1.0",
                body: Vec::new(),
                ..good().without("Content-Length")
            },
            403,
        ),
        case(
            "signed with the standard port",
            signed_for("https://hooks.example:443/twilio/conversations", &key()),
            204,
            AsEvent,
        ),
        refused(
            "signed with another port",
            signed_for("https://hooks.example:8443/twilio/conversations", &key()),
            403,
        ),
        refused(
            "signed for http",
            signed_for("http://hooks.example/twilio/conversations", &key()),
            403,
        ),
    ];
    for (name, value) in [
        ("Host", "evil.example"),
        ("X-Forwarded-Host", "evil.example"),
        ("X-Forwarded-Proto", "http"),
        ("X-Forwarded-Port", "8443"),
        ("Forwarded", "host=evil.example;proto=http"),
        ("X-Original-URL", "/evil"),
    ] {
        let forged = |wire: Wire| wire.instead(name, value);
        let name = format!("forged {name}, ");
        cases.push(case(name.clone() + "our URL", forged(good()), 204, AsEvent));
        let evil = signed_for("https://evil.example/twilio/conversations", &attacker);
        cases.push(refused(name.clone() + "their URL", forged(evil), 403));
        let evil = signed_for("https://evil.example/twilio/conversations", &key());
        cases.push(refused(name + "their URL with our key", forged(evil), 403));
    }
    for (name, signature) in [
        ("empty", ""),
        ("no base64", "?????"),
        ("19 bytes", "AAAAAAAAAAAAAAAAAAAAAAAAAA=="),
        ("unpadded", good_signature.trim_end_matches('=')),
    ] {
        let wire = good().instead("X-Twilio-Signature", signature);
        cases.push(refused(format!("signature: {name}"), wire, 403));
    }
    cases
}

fn forms() -> Vec<Case> {
    let body = "Sid=CA1&To=%2B1&To=%2B1&To=%2B0";
    let text = "SidCA1To+0To+1";
    let form_signature = |wire: Wire| wire.instead("Content-Type", "application/json");
    vec![
        case("form", form(body, text), 204, Quarantine("form")),
        case(
            "form, split otherwise",
            form("SidCA1=&To=%2B0&To=%2B1", text),
            204,
            Quarantine("form"),
        ),
        refused(
            "form, moved into the URL",
            form("To=%2B0&To=%2B1", text).to(format!("{PATH}?SidCA1")),
            403,
        ),
        refused("form as JSON", form_signature(form(body, text)), 403),
        refused(
            "form as JSON, split otherwise",
            form_signature(form("SidCA1=&To=%2B0&To=%2B1", text)),
            403,
        ),
        refused(
            "form as text",
            form(body, text).instead("Content-Type", "text/plain"),
            403,
        ),
        refused(
            "form as multipart",
            form(body, text).instead("Content-Type", "multipart/form-data; boundary=x"),
            403,
        ),
        refused(
            "form with another body's hash",
            Wire {
                body: body.into(),
                ..good().instead("Content-Length", body.len().to_string())
            }
            .instead("Content-Type", "application/x-www-form-urlencoded"),
            403,
        ),
    ]
}

fn routes() -> Vec<Case> {
    let mut cases = Vec::new();
    for method in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "post"] {
        cases.push(refused(method, good().method(method), 405));
    }
    for path in [
        "/",
        "/twilio/conversations/",
        "//twilio/conversations",
        "/twilio%2Fconversations",
        "/x/../twilio/conversations",
        "/Twilio/conversations",
        "/%74wilio/conversations",
        "/twilio/conversations;a=1",
    ] {
        let wire = good().to(good().target.replace(PATH, path));
        cases.push(refused(path, wire, 404));
    }
    // The stand-in for a refused head is no way in.
    let spelled = |target: &str| good().method("REFUSED").to(target);
    cases.push(refused("spelled refusal", spelled("/431"), 431));
    cases.push(refused("spelled acceptance", spelled("/204"), 400));
    cases
}

fn framing() -> Vec<Case> {
    let body = event("c1");
    let chunk = |size: &str| {
        let mut wire = good().chunked(1000);
        wire.body = format!("{size}\r\n{body}\r\n0\r\n\r\n").into_bytes();
        wire
    };
    let size = format!("{:x}", body.len());
    let lf = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().replace("\r\n", "\n");
    let mut cases = vec![
        Case {
            body: body.clone().into(),
            ..case("chunked", good().chunked(7), 204, AsEvent)
        },
        refused(
            "length and chunks",
            good().with("Transfer-Encoding", "chunked"),
            400,
        ),
        refused("bad chunk size", chunk("zz"), 400),
        refused("negative chunk size", chunk("-1"), 400),
        refused(
            "long chunk extension",
            chunk(&format!("{size};{}", "x".repeat(20_000))),
            400,
        ),
        raw("bare line feeds", lf(good().bytes()), 400),
        raw(
            "half bare line feeds",
            String::from_utf8(good().bytes())
                .unwrap()
                .replacen("\r\nContent", "\nContent", 1),
            400,
        ),
        refused("no host", good().without("Host"), 400),
        refused("two hosts", good().with("Host", "hooks.example"), 400),
        refused(
            "absolute target, evil host",
            good().to("http://evil.example/twilio/conversations"),
            400,
        ),
        refused(
            "absolute target, our host",
            good().to(signed_url(PUBLIC_URL, body.as_bytes())),
            400,
        ),
        refused(
            "raw UTF-8 in the target",
            good().to(format!("{PATH}?ö")),
            400,
        ),
        refused("NUL in a header", good().with("A", "a\0b"), 400),
        refused("space before the colon", good().with("A ", "b"), 400),
        refused("folded header", good().with("A", "b\r\n c"), 400),
        raw("HTTP/0.9", "GET /\r\n", 400),
        raw(
            "TLS hello",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice(),
            400,
        ),
        raw("HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        refused(
            "65 headers",
            (0..61).fold(good(), |wire, _| wire.with("A", "b")),
            431,
        ),
        case(
            "64 headers",
            (0..60).fold(good(), |wire, _| wire.with("A", "b")),
            204,
            AsEvent,
        ),
        refused("40 kB header", good().with("A", "x".repeat(40_000)), 431),
        refused(
            "target above 8 kB",
            good().to(format!("{PATH}?{}", "x".repeat(8_192))),
            414,
        ),
        refused(
            "target without end",
            good().to(format!("{PATH}?{}", "x".repeat(100_000))),
            414,
        ),
        refused("unknown expectation", good().with("Expect", "foo"), 417),
    ];
    for length in ["+2", "2, 2", "-1", "", "99999999999999999999", "0x5"] {
        let wire = good().instead("Content-Length", length);
        cases.push(refused(format!("length {length:?}"), wire, 400));
    }
    let two = good().with("Content-Length", "5");
    cases.push(refused("two lengths", two, 400));
    for coding in ["chunked, gzip", "gzip, chunked", "xchunked", "identity", ""] {
        let wire = good().chunked(100).instead("Transfer-Encoding", coding);
        cases.push(refused(format!("transfer coding {coding:?}"), wire, 400));
    }
    for coding in ["gzip", "br", "zstd"] {
        let wire = good().with("Content-Encoding", coding);
        cases.push(refused(format!("content coding {coding}"), wire, 415));
    }
    cases
}

fn sizes() -> Vec<Case> {
    let padded = |size: usize| {
        let body = event("c1");
        let padding = " ".repeat(size - body.len());
        Wire::signed(body + &padding)
    };
    let withheld = |wire: Wire| raw("length above the limit, body withheld", wire.head(), 413);
    vec![
        case("as large as may be", padded(MAX_BODY_BYTES), 204, AsEvent),
        refused("a byte too large", padded(MAX_BODY_BYTES + 1), 413),
        refused(
            "chunks too large",
            padded(2 * MAX_BODY_BYTES).chunked(10_000),
            413,
        ),
        withheld(good().instead("Content-Length", "262145")),
        withheld(
            good()
                .instead("Content-Length", "9223372036854775807")
                .with("Expect", "100-continue"),
        ),
        refused(
            "too large, unsigned, elsewhere",
            padded(MAX_BODY_BYTES + 1).to("/elsewhere"),
            404,
        ),
    ]
}

fn contents() -> Vec<Case> {
    let with_id = |id: &str| event(id).into_bytes();
    let long_type = format!(
        r#"{{"eventType":"{}","data":{{"id":"i","conversationId":"c"}}}}"#,
        "X".repeat(300)
    );
    let mut cases: Vec<_> = [
        ("empty", b"".to_vec(), Quarantine("not-json")),
        ("null", b"null".to_vec(), Quarantine("wrong-shape")),
        ("array", b"[]".to_vec(), Quarantine("wrong-shape")),
        ("string", b"\"x\"".to_vec(), Quarantine("wrong-shape")),
        ("number", b"1".to_vec(), Quarantine("wrong-shape")),
        ("no JSON", b"hello".to_vec(), Quarantine("not-json")),
        (
            "invalid UTF-8",
            b"{\"a\":\"\xff\"}".to_vec(),
            Quarantine("not-utf8"),
        ),
        ("BOM", b"\xef\xbb\xbf{}".to_vec(), Quarantine("not-json")),
        ("depth", b"[".repeat(100_000), Quarantine("wrong-shape")),
        ("id: empty", with_id(""), Quarantine("missing-id")),
        ("id: NUL", with_id("a\\u0000"), Quarantine("unusable-id")),
        (
            "id: long",
            with_id(&"x".repeat(10_000)),
            Quarantine("unusable-id"),
        ),
        ("id: path", with_id("../../x"), AsEvent),
        ("id: partition", with_id("A=B/C"), AsEvent),
        ("id: emoji", with_id("\u{1f980}"), AsEvent),
        (
            "long type",
            long_type.into_bytes(),
            Quarantine("unusable-type"),
        ),
    ]
    .into_iter()
    .map(|(name, body, kept)| case(name, Wire::signed(body), 204, kept))
    .collect();
    for (name, data) in [
        (
            "unknown type",
            r#""eventType":"NEW_THING","data":{"id":"i","conversationId":"c"}"#,
        ),
        (
            "numbers",
            r#""eventType":"CONVERSATION_CREATED","data":{"id":"c","n":[1e400,9223372036854775808,-0]}"#,
        ),
        (
            "no timestamp",
            r#""eventType":"CONVERSATION_CREATED","data":{"id":"c"}"#,
        ),
        (
            "odd timestamp",
            r#""eventType":"CONVERSATION_CREATED","timestamp":"never","data":{"id":"c"}"#,
        ),
    ] {
        let wire = Wire::signed(format!("{{{data}}}"));
        cases.push(case(name, wire, 204, AsEvent));
    }
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let deep = format!(r#"{{"eventType":"CONVERSATION_CREATED","data":{{"id":"c","x":{deep}}}}}"#);
    // What is not looked at is skipped without recursion, so its depth does not matter.
    cases.push(case("depth, closed", Wire::signed(deep), 204, AsEvent));
    let twice = r#"{"eventType":"CONVERSATION_UPDATED","data":{"id":"c","status":"CLOSED","status":"ACTIVE"}}"#;
    cases.push(case(
        "key twice",
        Wire::signed(twice),
        204,
        Quarantine("wrong-shape"),
    ));
    for (name, token) in [
        ("long", "x".repeat(10_000)),
        ("with a space", "a b".to_owned()),
    ] {
        let wire = good().with("I-Twilio-Idempotency-Token", token);
        cases.push(case(format!("token {name}"), wire, 204, AsEvent));
    }
    let twice = good()
        .with("I-Twilio-Idempotency-Token", "a")
        .with("I-Twilio-Idempotency-Token", "b");
    cases.push(case("token twice", twice, 204, AsEvent));
    cases
}

#[tokio::test]
async fn every_request_gets_its_status_and_only_authentic_ones_reach_kafka() {
    let cluster = cluster();
    let server = Server::start(&cluster.settings()).await;
    let cases: Vec<_> = [
        signatures(),
        forms(),
        routes(),
        framing(),
        sizes(),
        contents(),
    ]
    .into_iter()
    .flatten()
    .collect();
    let mut wrong = Vec::new();
    let mut forbidden = HashMap::new();
    for case in &cases {
        let mut client = server.connect().await;
        client.bodiless = case.wire.starts_with(b"HEAD ");
        client.send(&case.wire).await;
        let answer = client.answer().await;
        let status = answer.as_ref().map_or(0, |answer| answer.status);
        let open_after = match &answer {
            Some(answer) if answer.closes() => !client.is_closed().await,
            Some(answer) => ![204, 403].contains(&answer.status),
            None => false,
        };
        if status != case.status || open_after {
            wrong.push(format!("{}: {status}, want {}", case.name, case.status));
        }
        match answer {
            Some(answer) if status == 403 => {
                *forbidden.entry(answer.body).or_insert(0) += 1;
            }
            Some(answer) if status == 405 => {
                assert_eq!(answer.headers["allow"], "POST");
            }
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(forbidden.len(), 1, "all 403 are alike: {forbidden:?}");
    server.finish().await;

    let kept = |want: fn(&Kept) -> bool| cases.iter().filter(move |case| want(&case.kept));
    let events: Vec<_> = kept(|kept| *kept == AsEvent).collect();
    let records = read_back(&cluster, &topics().events, events.len()).await;
    for (case, record) in events.iter().zip(&records) {
        assert_eq!(record.value, case.body, "{}", case.name);
        assert!(record.headers.get("idempotency-token").is_none());
    }
    let quarantined: Vec<_> = kept(|kept| matches!(kept, Quarantine(_))).collect();
    let records = read_back(&cluster, &topics().quarantine, quarantined.len()).await;
    for (case, record) in quarantined.iter().zip(&records) {
        assert_eq!(record.value, case.body, "{}", case.name);
        assert_eq!(record.key, None);
        let reason = std::str::from_utf8(record.headers.get("dead-letter-reason").unwrap());
        assert!(
            matches!(case.kept, Quarantine(want) if reason == Ok(want)),
            "{}: {reason:?}",
            case.name
        );
        assert_eq!(
            record.headers.get("dead-letter-stage"),
            Some(&b"receive"[..])
        );
    }
}

#[tokio::test]
async fn a_record_has_the_headers_of_the_contract() {
    let cluster = cluster();
    let server = Server::start(&cluster.settings()).await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let wire = good()
        .with("I-Twilio-Idempotency-Token", "token-1")
        .with("traceparent", trace);
    let mut client = server.connect().await;
    client.send(&wire.bytes()).await;
    assert_eq!(client.status().await, 204);
    server.finish().await;

    let record = &read_back(&cluster, &topics().events, 1).await[0];
    assert_eq!(record.key.as_deref(), Some(&b"c1"[..]));
    let sha256 = <sha2::Sha256 as sha2::Digest>::digest(&wire.body).into();
    let id = crate::event::CallbackEvent::parse(&wire.body)
        .unwrap()
        .identity(&sha256);
    let headers: HashMap<_, _> = (record.headers.iter())
        .map(|(name, value)| (name, std::str::from_utf8(value.unwrap()).unwrap()))
        .collect();
    let id = id.to_string();
    let want = HashMap::from([
        ("ce_specversion", "1.0"),
        ("ce_id", &id),
        ("ce_source", "AC1"),
        ("ce_type", "com.twilio.conversations.CONVERSATION_UPDATED"),
        ("ce_time", "2026-11-22T09:59:59Z"),
        ("ce_subject", "c1"),
        ("content-type", "application/json"),
        ("received-at", "2026-11-22T10:00:00.123456Z"),
        ("idempotency-token", "token-1"),
        ("traceparent", trace),
    ]);
    assert_eq!(headers, want);
}
