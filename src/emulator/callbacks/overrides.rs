//! What the fragment of a callback URL asks for (Twilio, "Webhooks: Connection Overrides").
//!
//! Owns names, limits and defaults of the overrides. The fragment is never sent nor signed. Without one,
//! Twilio tries once more where it could not connect, and leaves it at that: retries are a property of
//! the URL, not of the emulator.
//!
//! A value that is not documented counts as its default where a conversation carries it; on the command
//! line it is refused ([`check`]).

use std::time::Duration;

/// Most retries that can be asked for.
const MAX_RETRIES: u64 = 5;
/// Shortest time of any of the waits.
const MIN_MILLISECONDS: u64 = 100;
/// Longest wait for a connection.
const MAX_CONNECT_MILLISECONDS: u64 = 10_000;
/// Longest wait for an answer, and of everything together.
const MAX_TOTAL_MILLISECONDS: u64 = 15_000;

/// How one URL wants its callbacks sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Overrides {
    /// `ct`: longest wait for a connection.
    pub(crate) connect: Duration,
    /// `rt`: longest wait for the answer, and between two pieces of it.
    pub(crate) read: Duration,
    /// `tt`: longest time of all tries and the pauses between them.
    pub(crate) total: Duration,
    /// `rc`: tries after the first.
    pub(crate) retries: u64,
    /// `rp`: what is tried again.
    pub(crate) policy: Policy,
}

/// The failures that are tried again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Policy {
    connect: bool,
    read: bool,
    client_error: bool,
    server_error: bool,
}

/// How a try failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No connection.
    Connect,
    /// A connection and no whole answer.
    Read,
    /// An answer other than 2xx.
    Status(u16),
}

impl Default for Overrides {
    fn default() -> Self {
        Overrides {
            connect: Duration::from_millis(5_000),
            read: Duration::from_millis(MAX_TOTAL_MILLISECONDS),
            total: Duration::from_millis(MAX_TOTAL_MILLISECONDS),
            retries: 1,
            policy: Policy {
                connect: true,
                ..Policy::default()
            },
        }
    }
}

impl Overrides {
    /// What `url` asks for, as far as it is documented.
    pub(crate) fn of(url: &str) -> Self {
        let mut overrides = Overrides::default();
        for (name, value) in pairs(url) {
            // What is not documented is not obeyed.
            let _ = overrides.set(name, value);
        }
        overrides
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        match name {
            "ct" => self.connect = milliseconds(name, value, MAX_CONNECT_MILLISECONDS)?,
            "rt" => self.read = milliseconds(name, value, MAX_TOTAL_MILLISECONDS)?,
            "tt" => self.total = milliseconds(name, value, MAX_TOTAL_MILLISECONDS)?,
            "rc" => self.retries = number(name, value, 0, MAX_RETRIES)?,
            "rp" => self.policy = Policy::parse(value)?,
            // Edges and server names are Twilio's network's.
            "e" | "sni" => {}
            _ => return Err(format!("#{name} is none of ct, rt, tt, rc, rp, e, sni")),
        }
        Ok(())
    }
}

impl Policy {
    fn parse(value: &str) -> Result<Self, String> {
        let mut policy = Policy::default();
        for word in value.split(',') {
            match word {
                "ct" => policy.connect = true,
                "rt" => policy.read = true,
                "4xx" => policy.client_error = true,
                "5xx" => policy.server_error = true,
                "all" => {
                    policy = Policy {
                        connect: true,
                        read: true,
                        client_error: true,
                        server_error: true,
                    };
                }
                _ => return Err("#rp is made of 4xx, 5xx, ct, rt, all".to_owned()),
            }
        }
        Ok(policy)
    }

    /// Whether this failure is tried again.
    pub(crate) fn covers(self, failure: Failure) -> bool {
        match failure {
            Failure::Connect => self.connect,
            Failure::Read => self.read,
            Failure::Status(400..=499) => self.client_error,
            Failure::Status(500..=599) => self.server_error,
            Failure::Status(_) => false,
        }
    }
}

/// The part of `url` that is sent and signed.
pub(crate) fn without_fragment(url: &str) -> &str {
    url.split_once('#').map_or(url, |(url, _)| url)
}

/// Whether every override of `url` is documented.
///
/// # Errors
/// Says which is not, and what it may be.
pub(crate) fn check(url: &str) -> Result<(), String> {
    let mut overrides = Overrides::default();
    pairs(url).try_for_each(|(name, value)| overrides.set(name, value))
}

fn pairs(url: &str) -> impl Iterator<Item = (&str, &str)> {
    let (_, fragment) = url.split_once('#').unwrap_or((url, ""));
    let pairs = fragment.split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

fn milliseconds(name: &str, value: &str, max: u64) -> Result<Duration, String> {
    number(name, value, MIN_MILLISECONDS, max).map(Duration::from_millis)
}

fn number(name: &str, value: &str, min: u64, max: u64) -> Result<u64, String> {
    match value.parse() {
        Ok(number) if (min..=max).contains(&number) => Ok(number),
        _ => Err(format!("#{name} is a whole number from {min} to {max}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAILURES: [Failure; 5] = [
        Failure::Connect,
        Failure::Read,
        Failure::Status(302),
        Failure::Status(403),
        Failure::Status(503),
    ];

    #[test]
    fn a_fragment_overrides_what_it_names() {
        let plain = Overrides::of("https://a.example/hook?x=1");
        assert_eq!(plain, Overrides::default());
        assert_eq!((plain.retries, plain.total), (1, Duration::from_secs(15)));
        let url = "https://a.example/hook#rc=5&ct=200&rt=900&tt=3000&rp=all&e=dublin&sni=y";
        check(url).unwrap();
        let asked = Overrides::of(url);
        assert_eq!(asked.retries, 5);
        let times = [asked.connect, asked.read, asked.total].map(|it| it.as_millis());
        assert_eq!(times, [200, 900, 3_000]);
        assert_eq!(without_fragment(url), "https://a.example/hook");
    }

    #[test]
    fn a_policy_says_what_is_tried_again() {
        for (policy, covered) in [
            ("", [true, false, false, false, false]),
            ("#rp=ct", [true, false, false, false, false]),
            ("#rp=rt", [false, true, false, false, false]),
            ("#rp=4xx", [false, false, false, true, false]),
            ("#rp=5xx,rt", [false, true, false, false, true]),
            ("#rp=all", [true, true, false, true, true]),
        ] {
            let overrides = Overrides::of(&format!("https://a.example/{policy}"));
            let found = FAILURES.map(|failure| overrides.policy.covers(failure));
            assert_eq!(found, covered, "{policy}");
        }
    }

    #[test]
    fn what_is_not_documented_is_refused_or_not_obeyed() {
        for wrong in [
            "rc=6", "rc=-1", "rc", "ct=99", "ct=10001", "rt=15001", "tt=x", "rp=3xx", "rd=1",
        ] {
            let url = format!("https://a.example/#{wrong}");
            assert_eq!(Overrides::of(&url), Overrides::default(), "{wrong}");
            let name = wrong.split('=').next().unwrap();
            let error = check(&url).unwrap_err();
            assert!(error.contains(name), "{wrong}: {error}");
        }
    }
}
