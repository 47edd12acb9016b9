//! The published vectors, the refusals one by one, and the property that no changed byte passes.

use hyper::header::HeaderValue;
use proptest::prelude::*;

use super::*;

/// The URL and key of the test suites of Twilio's Node and Python libraries.
const URL: &str = "https://mycompany.com/myapp.php?foo=1&bar=2";
const SECRET: &str = "12345";
const FORM: &str = "application/x-www-form-urlencoded";
const JSON: &str = "application/json";
const VECTOR_FORM: &str = "CallSid=CA1234567890ABCDE&Caller=%2B14158675309&Digits=1234\
                           &From=%2B14158675309&To=%2B18005551212";

fn key() -> SigningKey {
    SigningKey::new(Algorithm::Sha1, SECRET).unwrap()
}

fn verifier(url: &str) -> Verifier {
    Verifier::new(PublicUrl::parse(url).unwrap(), vec![key()]).unwrap()
}

fn headers(content_type: &str, signature: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, content_type.parse().unwrap());
    headers.insert(SIGNATURE_HEADER, signature.parse().unwrap());
    headers
}

fn target(url: &str) -> &str {
    let authority = url.find("://").unwrap() + 3;
    &url[authority + url[authority..].find('/').unwrap()..]
}

fn refusal(
    verifier: &Verifier,
    target: &str,
    headers: &HeaderMap,
    body: &'static [u8],
) -> &'static str {
    match verifier.verify(target, headers, Bytes::from_static(body)) {
        Ok(_) => "accepted",
        Err(refusal) => refusal.reason(),
    }
}

#[test]
fn forms_of_the_published_vectors() {
    for (url, signature) in [
        (URL, "RSOYDt4T1cUTdK1PDd93/VVr8B8="),
        (
            "https://mycompany.com:443/myapp.php?foo=1&bar=2",
            "kvajT1Ptam85bY51eRf/AJRuM3w=",
        ),
        (
            "http://mycompany.com:1234/myapp.php?foo=1&bar=2",
            "Zmvh+3yNM1Phv2jhDCwEM3q5ebU=",
        ),
        (
            "http://mycompany.com:80/myapp.php?foo=1&bar=2",
            "0ZXoZLH/DfblKGATFgpif+LLRf4=",
        ),
        (
            "https://user:pass@mycompany.com/myapp.php?foo=1&bar=2",
            "CukzLTc1tT5dXEDIHm/tKBanW10=",
        ),
    ] {
        let verified = verifier(url)
            .verify(
                target(URL),
                &headers(FORM, signature),
                Bytes::from_static(VECTOR_FORM.as_bytes()),
            )
            .unwrap_or_else(|refusal| panic!("{url}: {refusal}"));
        assert_eq!(verified.proof(), Proof::Parameters);
    }
}

#[test]
fn repeated_names_count_once_a_value() {
    let form = b"Sid=CA123&SidAccount=AC123&Digits=5678&Digits=1234&Digits=1234";
    let headers = headers(
        "application/x-www-form-urlencoded; charset=UTF-8",
        "IK+Dwps556ElfBT0I3Rgjkr1wJU=",
    );
    assert_eq!(
        refusal(&verifier(URL), target(URL), &headers, form),
        "accepted"
    );
}

#[test]
fn json_bodies_of_the_published_vectors() {
    let body: &[u8] = br#"{"property": "value", "boolean": true}"#;
    let bare = "https://mycompany.com/myapp.php";
    for (public_url, called, body, signature) in [
        (URL, URL, body, "a9nBmqA0ju/hNViExpshrM61xv4="),
        (bare, bare, body, "y77kIzt2vzLz71DgmJGsen2scGs="),
        (URL, URL, b"{}", "Ldidvp12m26NI7eqEvxnEpkd9Hc="),
        (URL, URL, b"{}", "rw/jVviOgicj2+kHZULvebnA4ag="),
        (URL, URL, b"", "iJrY47X4tdd2BtTmFEaAZy2dgz4="),
    ] {
        let called = signed_url(called, body);
        let verified = verifier(public_url).verify(
            target(&called),
            &headers(JSON, signature),
            Bytes::from_static(body),
        );
        assert_eq!(
            verified.map(|v| v.proof()),
            Ok(Proof::BodyHash),
            "{called} {signature}"
        );
    }
    assert_eq!(
        sign(&key(), &signed_url(URL, body)),
        "a9nBmqA0ju/hNViExpshrM61xv4="
    );
    assert!(signed_url(bare, b"{}").contains("?bodySHA256=44136fa3"));
}

#[test]
fn only_the_standard_port_may_be_left_out() {
    let called = |origin: &str| signed_url(&format!("{origin}/hook"), b"{}");
    for (public_url, signed_origin, want) in [
        ("https://h.example/hook", "https://h.example", "accepted"),
        (
            "https://h.example/hook",
            "https://h.example:443",
            "accepted",
        ),
        (
            "https://h.example:443/hook",
            "https://h.example",
            "accepted",
        ),
        ("http://h.example/hook", "http://h.example:80", "accepted"),
        ("http://[::1]/hook", "http://[::1]:80", "accepted"),
        (
            "https://h.example:443/hook",
            "https://h.example:8443",
            "wrong-signature",
        ),
        (
            "https://h.example:8443/hook",
            "https://h.example",
            "wrong-signature",
        ),
        (
            "https://h.example/hook",
            "http://h.example",
            "wrong-signature",
        ),
        (
            "https://h.example/hook",
            "https://h.example:80",
            "wrong-signature",
        ),
        (
            "https://h.example/hook",
            "https://H.example",
            "wrong-signature",
        ),
    ] {
        let url = called(signed_origin);
        let headers = headers(JSON, &sign(&key(), &url));
        let got = refusal(&verifier(public_url), target(&url), &headers, b"{}");
        assert_eq!(got, want, "{public_url} signed as {signed_origin}");
    }
}

#[test]
fn any_valid_key_will_do_and_only_with_its_own_digest() {
    let keys = ["sha1:old", "sha256:new"].map(|text| SigningKey::parse(text).unwrap());
    let verifier = Verifier::new(PublicUrl::parse(URL).unwrap(), keys.to_vec()).unwrap();
    let url = signed_url(URL, b"{}");
    for (key, want) in [
        ("sha1:old", "accepted"),
        ("sha256:new", "accepted"),
        ("sha256:old", "wrong-signature"),
        ("sha1:new", "wrong-signature"),
        ("sha1:retired", "wrong-signature"),
    ] {
        let signature = sign(&SigningKey::parse(key).unwrap(), &url);
        let headers = headers(JSON, &signature);
        assert_eq!(
            refusal(&verifier, target(&url), &headers, b"{}"),
            want,
            "{key}"
        );
    }
}

#[test]
fn signatures_that_are_not_one_digest_are_refused() {
    let url = signed_url(URL, b"{}");
    let good = sign(&key(), &url);
    let mut flipped = STANDARD.decode(&good).unwrap();
    flipped[19] ^= 1;
    let url_safe = good.replace('/', "_").replace('+', "-");
    assert_ne!(url_safe, good);
    for (signature, want) in [
        (String::new(), "malformed-signature"),
        ("?".repeat(28), "malformed-signature"),
        (STANDARD.encode([7; 19]), "malformed-signature"),
        (STANDARD.encode([7; 21]), "malformed-signature"),
        (url_safe, "malformed-signature"),
        (good.trim_end_matches('=').to_owned(), "malformed-signature"),
        (STANDARD.encode(flipped), "wrong-signature"),
        (STANDARD.encode([7; 20]), "wrong-signature"),
        (STANDARD.encode([7; 32]), "wrong-signature"),
    ] {
        let headers = headers(JSON, &signature);
        let got = refusal(&verifier(URL), target(&url), &headers, b"{}");
        assert_eq!(got, want, "{signature}");
    }
    let mut twice = headers(JSON, &good);
    twice.append(SIGNATURE_HEADER, HeaderValue::from_static("x"));
    assert_eq!(
        refusal(&verifier(URL), target(&url), &twice, b"{}"),
        "repeated-signature"
    );
    twice.remove(SIGNATURE_HEADER);
    assert_eq!(
        refusal(&verifier(URL), target(&url), &twice, b"{}"),
        "no-signature"
    );
}

#[test]
fn the_body_hash_is_required_exactly_once_and_in_one_spelling() {
    let good = target(&signed_url("https://h/hook", b"{}")).to_owned();
    let hash = good.split_once('=').unwrap().1;
    let other = target(&signed_url("https://h/hook", b"[]")).to_owned();
    for (query, want) in [
        (format!("bodySHA256={hash}"), "accepted"),
        (format!("a=1&bodySHA256={hash}&b=%2f"), "accepted"),
        (String::new(), "no-body-hash"),
        (format!("bodysha256={hash}"), "no-body-hash"),
        (format!("xbodySHA256={hash}"), "no-body-hash"),
        (format!("bodySHA256[]={hash}"), "no-body-hash"),
        (format!("body%53HA256={hash}"), "no-body-hash"),
        (format!("a=1;bodySHA256={hash}"), "no-body-hash"),
        (
            format!("bodySHA256={hash}&bodySHA256={hash}"),
            "repeated-body-hash",
        ),
        (
            format!("bodySHA256={hash}&bodySHA256=0"),
            "repeated-body-hash",
        ),
        (
            format!("bodySHA256=0&bodySHA256={hash}"),
            "repeated-body-hash",
        ),
        (
            format!("bodySHA256={}", hash.to_uppercase()),
            "malformed-body-hash",
        ),
        (format!("bodySHA256={}", &hash[1..]), "malformed-body-hash"),
        (format!("bodySHA256={hash}0"), "malformed-body-hash"),
        (other.split_once('?').unwrap().1.to_owned(), "other-body"),
    ] {
        let target = format!("/hook?{query}");
        let headers = headers(JSON, &sign(&key(), &format!("https://h{target}")));
        let got = refusal(&verifier("https://h/hook"), &target, &headers, b"{}");
        assert_eq!(got, want, "{target}");
    }
    let in_path = format!("/hook/bodySHA256={hash}");
    let headers = headers(JSON, &sign(&key(), &format!("https://h{in_path}")));
    let got = refusal(&verifier("https://h/hook"), &in_path, &headers, b"{}");
    assert_eq!(got, "other-path");
}

#[test]
fn a_body_that_was_touched_is_another_body() {
    for (signed, sent) in [
        (&b"{}"[..], &b""[..]),
        (b"{}", b"{ }"),
        (b"{}", b"{}\n"),
        (b"{}", b"\xef\xbb\xbf{}"),
        (b"{\r\n}", b"{\n}"),
    ] {
        let url = signed_url("https://h/hook", signed);
        let headers = headers(JSON, &sign(&key(), &url));
        let got = refusal(&verifier("https://h/hook"), target(&url), &headers, sent);
        assert_eq!(got, "other-body");
    }
}

#[test]
fn a_form_proves_nothing_under_another_content_type() {
    let signature = "RSOYDt4T1cUTdK1PDd93/VVr8B8=";
    for content_type in [
        JSON,
        "text/plain",
        "multipart/form-data; boundary=x",
        "application/x-www-form-urlencodedx",
    ] {
        let headers = headers(content_type, signature);
        let got = refusal(
            &verifier(URL),
            target(URL),
            &headers,
            VECTOR_FORM.as_bytes(),
        );
        assert_eq!(got, "no-body-hash", "{content_type}");
    }
}

/// Each of these signs like the captured JSON request, because a form's text has no separators.
#[test]
fn a_signed_json_url_cannot_be_turned_into_a_form() {
    let url = signed_url("https://h/hook", b"{}");
    let hash = &url[url.len() - 64..];
    let headers = headers(FORM, &sign(&key(), &url));
    for (target, form, want) in [
        (
            "/hook".to_owned(),
            format!("%3FbodySHA256%3D{hash}=&a="),
            "unusable-form",
        ),
        (
            "/hook".to_owned(),
            format!("%3FbodySHA256=%3D{hash}"),
            "unusable-form",
        ),
        (
            "/hook?".to_owned(),
            format!("bodySHA256=%3D{hash}"),
            "other-target",
        ),
        (
            "/hook?bodySH".to_owned(),
            format!("A256=%3D{hash}"),
            "other-target",
        ),
        (
            "/hook?bodySHA256=".to_owned(),
            format!("{hash}="),
            "malformed-body-hash",
        ),
        (
            format!("/hook?bodySHA256={hash}"),
            String::new(),
            "other-body",
        ),
    ] {
        let body = Bytes::from(form);
        let got = verifier("https://h/hook").verify(&target, &headers, body);
        assert_eq!(got.unwrap_err().reason(), want, "{target}");
    }
}

#[test]
fn forms_that_no_one_would_send_are_refused() {
    let many = "a=1&".repeat(MAX_FORM_PARAMETERS + 1);
    for form in ["a=%2", "a=%zz", "=1", "&+a=1", many.as_str()] {
        let headers = headers(FORM, &STANDARD.encode([0; 20]));
        let got = verifier("https://h/hook").verify("/hook", &headers, form.to_owned().into());
        assert_eq!(got.unwrap_err(), Refusal::UnusableForm);
    }
}

#[test]
fn public_urls_that_no_request_could_match_are_refused() {
    for (text, want) in [
        ("h.example/hook", InvalidPublicUrl::Scheme),
        ("HTTPS://h.example/hook", InvalidPublicUrl::Scheme),
        ("https:///hook", InvalidPublicUrl::Host),
        ("https://user@:443/hook", InvalidPublicUrl::Host),
        ("https://h.example", InvalidPublicUrl::Path),
        ("https://h.example?a=1", InvalidPublicUrl::Path),
        ("https://h.example:/hook", InvalidPublicUrl::Port),
        ("https://h.example:+1/hook", InvalidPublicUrl::Port),
        ("https://h.example:65536/hook", InvalidPublicUrl::Port),
        ("https://h.example/hook#rc=5", InvalidPublicUrl::Fragment),
        ("https://h.example/h ook", InvalidPublicUrl::Characters),
        ("https://h.example/hö", InvalidPublicUrl::Characters),
    ] {
        assert_eq!(PublicUrl::parse(text), Err(want), "{text}");
    }
    let url = PublicUrl::parse(URL).unwrap();
    assert_eq!((url.path(), url.target()), ("/myapp.php", target(URL)));
    assert_eq!(url.to_string(), URL);
}

#[test]
fn secrets_are_not_printed() {
    let key = SigningKey::parse("sha256:canary").unwrap();
    let shown = format!(
        "{key:?} {:?}",
        Verifier::new(PublicUrl::parse(URL).unwrap(), vec![key.clone()])
    );
    assert!(!shown.contains("canary"), "{shown}");
    for (text, want) in [
        ("sha1:", InvalidKey::Empty),
        ("canary", InvalidKey::Notation),
        ("md5:canary", InvalidKey::Notation),
        ("SHA1:canary", InvalidKey::Notation),
    ] {
        let error = SigningKey::parse(text).unwrap_err();
        assert_eq!(error, want);
        assert!(!format!("{error} {error:?}").contains("canary"));
    }
    let none = Verifier::new(PublicUrl::parse(URL).unwrap(), Vec::new());
    assert_eq!(none.unwrap_err(), NoKeys);
}

proptest! {
    #[test]
    fn what_is_signed_verifies_and_no_changed_byte_does(
        query in "[!-~&&[^#?]]{0,40}",
        body in proptest::collection::vec(any::<u8>(), 1..200),
        at in any::<proptest::sample::Index>(),
        flip in 1u8..128,
        sha256 in any::<bool>(),
    ) {
        let algorithm = if sha256 { Algorithm::Sha256 } else { Algorithm::Sha1 };
        let key = SigningKey::new(algorithm, SECRET).unwrap();
        let public_url = PublicUrl::parse("https://h.example/hook").unwrap();
        let verifier = Verifier::new(public_url, vec![key.clone()]).unwrap();
        prop_assume!(!query.contains("bodySHA256"));
        let url = signed_url(&format!("https://h.example/hook?{query}"), &body);
        let signature = sign(&key, &url);
        let verify = |target: &str, signature: &str, body: &[u8]| {
            verifier.verify(target, &headers(JSON, signature), Bytes::copy_from_slice(body))
        };
        let verified = verify(target(&url), &signature, &body).unwrap();
        prop_assert_eq!(verified.body(), &body);
        prop_assert_eq!(verified.sha256(), &<[u8; 32]>::from(Sha256::digest(&body)));

        let changed = |text: &[u8]| {
            let mut text = text.to_vec();
            let at = at.index(text.len());
            text[at] ^= flip;
            text
        };
        prop_assert!(verify(target(&url), &signature, &changed(&body)).is_err());
        // Hash and query are both in the target.
        let other = String::from_utf8(changed(target(&url).as_bytes())).unwrap();
        prop_assert!(verify(&other, &signature, &body).is_err(), "{}", other);
        let other = String::from_utf8(changed(signature.as_bytes())).unwrap();
        if HeaderValue::from_str(&other).is_ok() {
            prop_assert!(verify(target(&url), &other, &body).is_err(), "{}", other);
        }
        let other = SigningKey::new(algorithm, "12346").unwrap();
        prop_assert!(verify(target(&url), &sign(&other, &url), &body).is_err());
    }

    #[test]
    fn no_bytes_panic_and_none_pass_without_the_key(
        target in ".{0,60}",
        content_type in prop_oneof![Just(FORM), Just(JSON)],
        digest in any::<[u8; 20]>(),
        body in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        let headers = headers(content_type, &STANDARD.encode(digest));
        for target in [target, "/hook".to_owned()] {
            let got = verifier("https://h/hook").verify(&target, &headers, body.clone().into());
            prop_assert!(got.is_err());
        }
    }

    #[test]
    fn forms_sign_alike_in_any_order(
        mut parameters in proptest::collection::vec(("[a-c][ -~]{0,3}", "\\PC{0,4}"), 0..8),
        seed in any::<proptest::sample::Index>(),
    ) {
        let encode = |text: &str| -> String {
            text.bytes().map(|byte| format!("%{byte:02X}")).collect()
        };
        let form = |parameters: &[(String, String)]| {
            let pairs: Vec<_> = parameters
                .iter()
                .map(|(name, value)| format!("{}={}", encode(name), encode(value)))
                .collect();
            sorted_parameters(pairs.join("&").as_bytes()).unwrap()
        };
        let before = form(&parameters);
        let mid = seed.index(parameters.len() + 1);
        parameters.rotate_left(mid);
        prop_assert_eq!(before, form(&parameters));
    }
}
