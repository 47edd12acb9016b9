//! Proves that Twilio sent a request: URL, headers, bytes and keys in; a [`Verified`] body or a
//! [`Refusal`] out.
//!
//! Owns the rules of `X-Twilio-Signature` (Twilio, "Webhooks security"; the behaviour of Twilio's own
//! helper libraries where the page is silent). Refuses to read anything that a proxy or the client can
//! write (`Host`, `Forwarded`, `X-Forwarded-*`): scheme, host and port are those of the configured
//! [`PublicUrl`]. Refuses to look into a body.
//!
//! Guarantees: no I/O and no clock; nothing is normalised, so one changed byte of the target is another
//! URL; digests are compared in constant time and a wrong one meets every key; a [`Verified`] cannot be
//! made anywhere else. The secret is consumed by the keyed digest and never kept as text.
//!
//! Two rules exist, and the URL says which one holds:
//!
//! 1. **Body hash.** The query has `bodySHA256`: the signature covers the URL, the URL covers the body.
//!    Required of every content type but one, because otherwise the signature says nothing about the
//!    body.
//! 2. **Parameters.** No `bodySHA256` and a form: the signature covers the URL and the sorted
//!    parameters run together. That text has no separators: `Sid=CA12` and `SidCA=12` sign alike, so
//!    what it proves is weaker ([`Proof::Parameters`]) and must not decide anything. One more confusion
//!    would be fatal and is closed: a captured JSON request's `?bodySHA256=…` moved into a form's
//!    parameters. A form's target must be the configured one, byte for byte, and parameter names must
//!    start with a letter or digit, so no form signs like a URL with another query.

mod url;

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use hyper::HeaderMap;
use hyper::header::CONTENT_TYPE;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

#[cfg(feature = "sabotage")]
use crate::config::sabotage::{self, Sabotage};
use crate::event::write_hex;

pub use url::{InvalidPublicUrl, PublicUrl};

/// The header that carries the signature.
pub const SIGNATURE_HEADER: &str = "x-twilio-signature";

/// The query parameter that carries the body's hash. No other spelling counts.
pub const BODY_HASH_PARAMETER: &str = "bodySHA256";

/// Most parameters of a form. Twilio's largest have under a hundred; sorting more is work for nobody.
pub const MAX_FORM_PARAMETERS: usize = 1_024;

/// Checks requests to one public URL against the keys that are valid now.
#[derive(Debug, Clone)]
pub struct Verifier {
    url: PublicUrl,
    keys: Vec<SigningKey>,
}

impl Verifier {
    /// A verifier for `url`. Several keys are valid at once while they are rotated.
    ///
    /// # Errors
    /// [`NoKeys`] where `keys` is empty: a receiver without a key would refuse everything, or worse.
    pub fn new(url: PublicUrl, keys: Vec<SigningKey>) -> Result<Self, NoKeys> {
        if keys.is_empty() {
            return Err(NoKeys);
        }
        Ok(Verifier { url, keys })
    }

    /// The URL whose requests are checked.
    pub fn url(&self) -> &PublicUrl {
        &self.url
    }

    /// Proves `body` by the headers and by `target`, the path and query exactly as received.
    ///
    /// # Errors
    /// The first rule that is broken. All refusals are alike to the sender; the reason is for us.
    pub fn verify(
        &self,
        target: &str,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<Verified, Refusal> {
        let claimed = Claimed::read(headers)?;
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        if path != self.url.path() {
            return Err(Refusal::OtherPath);
        }
        let proof = match body_hash(query)? {
            Some(hash) => {
                // The digest first: bodies of strangers are not worth hashing.
                self.prove(&claimed, &[target.as_bytes()])?;
                let sha256: [u8; 32] = Sha256::digest(&body).into();
                let same = bool::from(sha256.ct_eq(&hash));
                #[cfg(feature = "sabotage")]
                let same = same || sabotage::is(Sabotage::BodyHash);
                if !same {
                    return Err(Refusal::OtherBody);
                }
                return Ok(Verified {
                    body,
                    sha256,
                    proof: Proof::BodyHash,
                });
            }
            None if !is_form(headers) => return Err(Refusal::NoBodyHash),
            None if target != self.url.target() => return Err(Refusal::OtherTarget),
            None => {
                let parameters = sorted_parameters(&body)?;
                let mut pieces = Vec::with_capacity(1 + 2 * parameters.len());
                pieces.push(target.as_bytes());
                for (name, value) in &parameters {
                    pieces.extend([name.as_slice(), value.as_slice()]);
                }
                self.prove(&claimed, &pieces)?;
                Proof::Parameters
            }
        };
        Ok(Verified {
            sha256: Sha256::digest(&body).into(),
            body,
            proof,
        })
    }

    /// Whether some key signed one of the URL's origins followed by `pieces`.
    fn prove(&self, claimed: &Claimed, pieces: &[&[u8]]) -> Result<(), Refusal> {
        let origins = || self.url.origins();
        let proven = (self.keys.iter())
            .any(|key| origins().any(|origin| key.signed(origin.as_bytes(), pieces, claimed)));
        // Stopping at a match tells the time of a match only, to a sender who has one already.
        if proven {
            Ok(())
        } else {
            Err(Refusal::WrongSignature)
        }
    }
}

/// A body that was proven. Only [`Verifier::verify`] makes one.
#[derive(Clone)]
pub struct Verified {
    body: Bytes,
    sha256: [u8; 32],
    proof: Proof,
}

impl Verified {
    /// The body, byte for byte.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// SHA-256 of the body.
    pub fn sha256(&self) -> &[u8; 32] {
        &self.sha256
    }

    /// How far the proof goes.
    pub fn proof(&self) -> Proof {
        self.proof
    }
}

impl fmt::Debug for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verified")
            .field("bytes", &self.body.len())
            .field("proof", &self.proof)
            .finish_non_exhaustive()
    }
}

/// What a verified body was proven by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// The signed URL names the body's hash: every byte is Twilio's.
    BodyHash,
    /// The parameters run together are Twilio's; where one ends and the next begins is not proven.
    Parameters,
}

/// Why a request is not proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No `X-Twilio-Signature`.
    #[error("the request has no signature")]
    NoSignature,
    /// More than one: which would hold?
    #[error("the request has several signatures")]
    RepeatedSignature,
    /// Not padded standard base64 of 20 or 32 bytes.
    #[error("the signature is not the base64 of a digest")]
    MalformedSignature,
    /// Not the public URL's path.
    #[error("the request's path is not the public URL's")]
    OtherPath,
    /// A form with another query than the public URL's.
    #[error("a form's target is not the public URL's")]
    OtherTarget,
    /// No `bodySHA256` in the query.
    #[error("the signed URL has no bodySHA256")]
    NoBodyHash,
    /// `bodySHA256` more than once.
    #[error("the signed URL has several bodySHA256")]
    RepeatedBodyHash,
    /// `bodySHA256` is not 64 lower-case hex digits.
    #[error("bodySHA256 is not 64 lower-case hex digits")]
    MalformedBodyHash,
    /// A form that Twilio would not send: bad escapes, odd names, too many parameters.
    #[error("the form cannot be read")]
    UnusableForm,
    /// The body is not the one that the signed URL names.
    #[error("the body is not the one that was signed")]
    OtherBody,
    /// No key signed this URL.
    #[error("no key signed this URL")]
    WrongSignature,
}

impl Refusal {
    /// A stable word for metrics and logs.
    pub fn reason(self) -> &'static str {
        match self {
            Refusal::NoSignature => "no-signature",
            Refusal::RepeatedSignature => "repeated-signature",
            Refusal::MalformedSignature => "malformed-signature",
            Refusal::OtherPath => "other-path",
            Refusal::OtherTarget => "other-target",
            Refusal::NoBodyHash => "no-body-hash",
            Refusal::RepeatedBodyHash => "repeated-body-hash",
            Refusal::MalformedBodyHash => "malformed-body-hash",
            Refusal::UnusableForm => "unusable-form",
            Refusal::OtherBody => "other-body",
            Refusal::WrongSignature => "wrong-signature",
        }
    }
}

/// A verifier without keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "no signing key is configured: set CONVOLAKE_SIGNING_KEYS (sha1:<secret>,…) or TWILIO_AUTH_TOKEN"
)]
pub struct NoKeys;

/// A key's digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// HMAC-SHA1, Twilio's default.
    Sha1,
    /// HMAC-SHA256, for shared keys.
    Sha256,
}

/// A secret and its digest, ready to sign. Neither printed nor readable.
#[derive(Clone)]
pub struct SigningKey(Keyed);

// The keyed state costs 160 ns to set up and little to copy, so that each request starts from a copy.
#[derive(Clone)]
enum Keyed {
    Sha1(Hmac<Sha1>),
    Sha256(Hmac<Sha256>),
}

impl SigningKey {
    /// A key from its secret, the auth token or a shared key's text.
    ///
    /// # Errors
    /// [`InvalidKey::Empty`].
    pub fn new(algorithm: Algorithm, secret: &str) -> Result<Self, InvalidKey> {
        if secret.is_empty() {
            return Err(InvalidKey::Empty);
        }
        let secret = secret.as_bytes();
        Ok(SigningKey(match algorithm {
            Algorithm::Sha1 => {
                Keyed::Sha1(Hmac::new_from_slice(secret).expect("HMAC takes keys of any length"))
            }
            Algorithm::Sha256 => {
                Keyed::Sha256(Hmac::new_from_slice(secret).expect("HMAC takes keys of any length"))
            }
        }))
    }

    /// A key from `sha1:<secret>` or `sha256:<secret>`, the notation of the configuration.
    ///
    /// # Errors
    /// Says what is wrong without repeating the text.
    pub fn parse(text: &str) -> Result<Self, InvalidKey> {
        match text.split_once(':') {
            Some(("sha1", secret)) => SigningKey::new(Algorithm::Sha1, secret),
            Some(("sha256", secret)) => SigningKey::new(Algorithm::Sha256, secret),
            _ => Err(InvalidKey::Notation),
        }
    }

    /// Its digest.
    pub fn algorithm(&self) -> Algorithm {
        match self.0 {
            Keyed::Sha1(_) => Algorithm::Sha1,
            Keyed::Sha256(_) => Algorithm::Sha256,
        }
    }

    fn signed(&self, origin: &[u8], pieces: &[&[u8]], claimed: &Claimed) -> bool {
        match &self.0 {
            Keyed::Sha1(mac) => verify_mac(mac.clone(), origin, pieces, claimed.bytes()),
            Keyed::Sha256(mac) => verify_mac(mac.clone(), origin, pieces, claimed.bytes()),
        }
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({:?}, secret not shown)", self.algorithm())
    }
}

/// Why a text is not a signing key. Never holds the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    /// Neither `sha1:` nor `sha256:` in front.
    #[error("a signing key is written sha1:<secret> or sha256:<secret>")]
    Notation,
    /// Nothing behind it.
    #[error("a signing key has an empty secret")]
    Empty,
}

fn verify_mac<M: Mac>(mut mac: M, origin: &[u8], pieces: &[&[u8]], claimed: &[u8]) -> bool {
    mac.update(origin);
    for piece in pieces {
        mac.update(piece);
    }
    mac.verify_slice(claimed).is_ok()
}

/// The header value that proves `url` (for JSON: with its body's hash, see [`signed_url`]).
pub fn sign(key: &SigningKey, url: &str) -> String {
    fn digest<M: Mac>(mut mac: M, url: &str) -> String {
        mac.update(url.as_bytes());
        STANDARD.encode(mac.finalize().into_bytes())
    }
    match &key.0 {
        Keyed::Sha1(mac) => digest(mac.clone(), url),
        Keyed::Sha256(mac) => digest(mac.clone(), url),
    }
}

/// `url` with the hash of `body` in its query: what Twilio calls, and signs, for a JSON body.
pub fn signed_url(url: &str, body: &[u8]) -> String {
    let mut digits = [0; 64];
    write_hex(&Sha256::digest(body), &mut digits);
    let hash = std::str::from_utf8(&digits).expect("hex digits are ASCII");
    let separator = if url.contains('?') { '&' } else { '?' };
    format!("{url}{separator}{BODY_HASH_PARAMETER}={hash}")
}

/// The digest that a request claims, decoded.
struct Claimed {
    bytes: [u8; 48],
    len: usize,
}

impl Claimed {
    /// 20 or 32 bytes, by the length of their padded base64.
    const ENCODED_LENGTHS: [usize; 2] = [28, 44];

    fn read(headers: &HeaderMap) -> Result<Self, Refusal> {
        let mut values = headers.get_all(SIGNATURE_HEADER).iter();
        let value = values.next().ok_or(Refusal::NoSignature)?;
        if values.next().is_some() {
            return Err(Refusal::RepeatedSignature);
        }
        if !Claimed::ENCODED_LENGTHS.contains(&value.len()) {
            return Err(Refusal::MalformedSignature);
        }
        let mut bytes = [0; 48];
        match STANDARD.decode_slice(value.as_bytes(), &mut bytes) {
            Ok(len @ (20 | 32)) => Ok(Claimed { bytes, len }),
            _ => Err(Refusal::MalformedSignature),
        }
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// The hash that the query names; the parameter's name is compared as sent, never decoded.
fn body_hash(query: &str) -> Result<Option<[u8; 32]>, Refusal> {
    let mut hash = None;
    for parameter in query.split('&') {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        if name != BODY_HASH_PARAMETER {
            continue;
        }
        if hash.is_some() {
            return Err(Refusal::RepeatedBodyHash);
        }
        hash = Some(value);
    }
    hash.map(|digits| decode_hash(digits).ok_or(Refusal::MalformedBodyHash))
        .transpose()
}

fn decode_hash(digits: &str) -> Option<[u8; 32]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let digits: &[u8; 64] = digits.as_bytes().try_into().ok()?;
    let mut hash = [0; 32];
    for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(hash)
}

/// Whether the content type is a form's, whatever its parameters.
fn is_form(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(CONTENT_TYPE).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return false;
    };
    let essence = value.as_bytes().split(|byte| *byte == b';').next();
    essence.is_some_and(|essence| {
        essence
            .trim_ascii()
            .eq_ignore_ascii_case(b"application/x-www-form-urlencoded")
    })
}

type Parameter = (Vec<u8>, Vec<u8>);

/// A form's parameters as they are signed: by name, the distinct values of each name sorted.
fn sorted_parameters(body: &[u8]) -> Result<Vec<Parameter>, Refusal> {
    let mut parameters = Vec::new();
    for pair in body.split(|byte| *byte == b'&') {
        if pair.is_empty() {
            continue;
        }
        if parameters.len() == MAX_FORM_PARAMETERS {
            return Err(Refusal::UnusableForm);
        }
        let equals = pair.iter().position(|byte| *byte == b'=');
        let (name, value) = match equals {
            Some(equals) => (&pair[..equals], &pair[equals + 1..]),
            None => (pair, &pair[..0]),
        };
        let name = decode_form(name).ok_or(Refusal::UnusableForm)?;
        if !name.first().is_some_and(u8::is_ascii_alphanumeric) {
            return Err(Refusal::UnusableForm);
        }
        parameters.push((name, decode_form(value).ok_or(Refusal::UnusableForm)?));
    }
    parameters.sort_unstable();
    parameters.dedup();
    Ok(parameters)
}

fn decode_form(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.iter().copied();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => {
                let value = digit(bytes.next()?)? * 16 + digit(bytes.next()?)?;
                u8::try_from(value).expect("two hex digits are a byte")
            }
            other => other,
        });
    }
    Some(decoded)
}

#[cfg(test)]
mod tests;
