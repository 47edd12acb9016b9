//! The configured public URL, taken apart once and never normalised.
//!
//! Owns what the signed text starts with (scheme and authority, with and without the standard port) and
//! what the route is. Refuses a URL that no request could match: a wrong scheme, no path, a fragment.
//!
//! Guarantees: [`PublicUrl`] prints exactly the text it was read from.

use std::fmt;

/// The URL that Twilio was given, as the public sees it, kept byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicUrl {
    /// Scheme and authority, first as configured, then with the standard port added or removed.
    origin: String,
    other_origin: Option<String>,
    target: String,
    path_len: usize,
}

impl PublicUrl {
    /// Reads `https://host[:port]/path[?query]`; `http` is accepted for a server on loopback.
    ///
    /// # Errors
    /// [`InvalidPublicUrl`] says which part to change.
    pub fn parse(text: &str) -> Result<Self, InvalidPublicUrl> {
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(InvalidPublicUrl::Characters);
        }
        if text.contains('#') {
            return Err(InvalidPublicUrl::Fragment);
        }
        let (scheme, standard_port, rest) = match text.split_once("://") {
            Some(("https", rest)) => ("https", "443", rest),
            Some(("http", rest)) => ("http", "80", rest),
            _ => return Err(InvalidPublicUrl::Scheme),
        };
        let authority_len = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(authority_len);
        if !target.starts_with('/') {
            return Err(InvalidPublicUrl::Path);
        }
        let host_start = authority.rfind('@').map_or(0, |at| at + 1);
        let host_and_port = &authority[host_start..];
        // A colon inside the brackets of an IPv6 address begins no port.
        let after_brackets = host_and_port.rfind(']').map_or(0, |bracket| bracket + 1);
        let colon = host_and_port[after_brackets..].find(':');
        let (host, port) = match colon.map(|colon| after_brackets + colon) {
            Some(colon) => (&host_and_port[..colon], Some(&host_and_port[colon + 1..])),
            None => (host_and_port, None),
        };
        if host.is_empty() {
            return Err(InvalidPublicUrl::Host);
        }
        let origin = format!("{scheme}://{authority}");
        let other_origin = match port {
            None => Some(format!("{origin}:{standard_port}")),
            Some(port) if port == standard_port => {
                Some(origin[..origin.len() - port.len() - 1].to_owned())
            }
            Some(port) if is_port(port) => None,
            Some(_) => return Err(InvalidPublicUrl::Port),
        };
        Ok(PublicUrl {
            origin,
            other_origin,
            target: target.to_owned(),
            path_len: target.find('?').unwrap_or(target.len()),
        })
    }

    /// The route: everything between the authority and the query.
    pub fn path(&self) -> &str {
        &self.target[..self.path_len]
    }

    /// Path and query as configured.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// Twilio's helper libraries try a URL with and without the standard port; so must we.
    pub(super) fn origins(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.origin.as_str()).chain(self.other_origin.as_deref())
    }
}

/// The URL as configured.
impl fmt::Display for PublicUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.origin, self.target)
    }
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|port| port > 0)
}

/// Why a text is not a usable public URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPublicUrl {
    /// Neither `https://` nor `http://`, in lower case.
    #[error("the public URL must start with https://")]
    Scheme,
    /// Spaces, controls or letters outside ASCII.
    #[error("the public URL must be visible ASCII: percent-encode the rest, as Twilio has it")]
    Characters,
    /// No host.
    #[error("the public URL has no host")]
    Host,
    /// Not 1 to 65535.
    #[error("the public URL's port is not a number from 1 to 65535")]
    Port,
    /// No path: a server cannot tell `https://host` from `https://host/`.
    #[error("the public URL has no path: give at least /")]
    Path,
    /// `#…` is neither sent nor signed.
    #[error("the public URL has a fragment (#…), which is never sent: leave it out here")]
    Fragment,
}
