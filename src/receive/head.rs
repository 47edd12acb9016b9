//! Is this the head of one request that everybody reads alike? A pure check of the raw bytes.
//!
//! Owns the strict rules of framing (RFC 9112): what two servers could read differently is refused
//! before the HTTP library sees it. hyper accepts bare line feeds, takes the first of two `Host`s, removes
//! a `Content-Length` beside a `Transfer-Encoding`, and passes `gzip, chunked` on; each lets a proxy
//! in front and us disagree about where a request ends or whose it is. Refuses to know routes.
//!
//! Guarantees: each byte is looked at once, however it arrives, and no more than [`MAX_HEAD_BYTES`] are
//! ever needed.

/// Longest request head, its final empty line included.
pub(super) const MAX_HEAD_BYTES: usize = 16 * 1024;

/// Longest target (path and query).
pub(super) const MAX_TARGET_BYTES: usize = 8 * 1024;

/// Most header lines.
pub(super) const MAX_HEADERS: usize = 64;

/// What is known of a head whose bytes are still arriving.
#[derive(Debug, Default)]
pub(super) struct Head {
    scanned: usize,
    line_start: usize,
    lines: usize,
    hosts: usize,
    length: Option<u64>,
    chunked: bool,
    version_1_0: bool,
}

/// A whole head, and how its body is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Complete {
    /// Bytes of the head.
    pub(super) bytes: usize,
    pub(super) body: Framing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// So many bytes follow.
    Length(u64),
    /// Chunks follow.
    Chunked,
}

/// Why a head goes no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// Not HTTP/1.1, or not unambiguously so: 400.
    Malformed,
    /// 414.
    TargetTooLong,
    /// 431.
    TooLarge,
}

impl Head {
    /// Reads on in `bytes`, which start with the head and have grown since the last call.
    ///
    /// `None` while the head is not whole.
    pub(super) fn advance(&mut self, bytes: &[u8]) -> Result<Option<Complete>, Refused> {
        // A TLS hello has no lines to wait for.
        if bytes.first().is_some_and(|byte| !is_token(*byte)) {
            return Err(Refused::Malformed);
        }
        while let Some(found) = bytes[self.scanned..].iter().position(|byte| *byte == b'\n') {
            let newline = self.scanned + found;
            self.scanned = newline + 1;
            if self.scanned > MAX_HEAD_BYTES {
                return Err(self.too_long());
            }
            let line = bytes[self.line_start..newline]
                .strip_suffix(b"\r")
                .ok_or(Refused::Malformed)?;
            self.line_start = self.scanned;
            if line.is_empty() {
                return self.complete().map(Some);
            }
            match self.lines {
                0 => self.request_line(line)?,
                _ => self.header(line)?,
            }
            self.lines += 1;
            if self.lines > 1 + MAX_HEADERS {
                return Err(Refused::TooLarge);
            }
        }
        self.scanned = bytes.len();
        if self.scanned >= MAX_HEAD_BYTES {
            return Err(self.too_long());
        }
        Ok(None)
    }

    fn too_long(&self) -> Refused {
        match self.lines {
            0 => Refused::TargetTooLong,
            _ => Refused::TooLarge,
        }
    }

    fn complete(&self) -> Result<Complete, Refused> {
        let body = match (self.chunked, self.length) {
            (true, None) if !self.version_1_0 => Framing::Chunked,
            (true, _) => return Err(Refused::Malformed),
            (false, length) => Framing::Length(length.unwrap_or(0)),
        };
        if self.hosts != 1 {
            return Err(Refused::Malformed);
        }
        Ok(Complete {
            bytes: self.scanned,
            body,
        })
    }

    /// `METHOD /target HTTP/1.1`. Absolute targets, which name a host of their own, are refused even
    /// where the host is ours: no client that is not talking to a proxy sends them.
    fn request_line(&mut self, line: &[u8]) -> Result<(), Refused> {
        let mut parts = line.split(|byte| *byte == b' ');
        let (Some(method), Some(target), Some(version), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Refused::Malformed);
        };
        if target.len() > MAX_TARGET_BYTES {
            return Err(Refused::TargetTooLong);
        }
        let target_is_plain = target.first() == Some(&b'/')
            && (target.iter()).all(|byte| byte.is_ascii_graphic() && *byte != b'#');
        self.version_1_0 = version == b"HTTP/1.0";
        let version_is_1 = self.version_1_0 || version == b"HTTP/1.1";
        if method.iter().all(|byte| is_token(*byte)) && target_is_plain && version_is_1 {
            Ok(())
        } else {
            Err(Refused::Malformed)
        }
    }

    fn header(&mut self, line: &[u8]) -> Result<(), Refused> {
        let colon = line.iter().position(|byte| *byte == b':');
        let (name, value) = line.split_at(colon.ok_or(Refused::Malformed)?);
        let value = value[1..].trim_ascii();
        // A folded line starts with a space, which is no name either.
        let name_is_token = !name.is_empty() && name.iter().all(|byte| is_token(*byte));
        let value_is_text = (value.iter()).all(|byte| !byte.is_ascii_control() || *byte == b'\t');
        if !name_is_token || !value_is_text {
            return Err(Refused::Malformed);
        }
        if name.eq_ignore_ascii_case(b"host") {
            self.hosts += 1;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            let length = decimal(value).ok_or(Refused::Malformed)?;
            if self.length.replace(length).is_some() {
                return Err(Refused::Malformed);
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Refused::Malformed);
            }
            self.chunked = true;
        }
        Ok(())
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Digits only: no sign, no list, no overflow.
fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole(head: &[u8]) -> Result<Option<Complete>, Refused> {
        Head::default().advance(head)
    }

    #[test]
    fn framing_comes_from_one_header_or_none() {
        let framing = |headers: &str| {
            let head = format!("POST /h HTTP/1.1\r\nHost: h\r\n{headers}\r\nrest");
            whole(head.as_bytes()).map(|complete| complete.expect("the head is whole").body)
        };
        for (headers, want) in [
            ("", Ok(Framing::Length(0))),
            ("Content-Length: 7\r\n", Ok(Framing::Length(7))),
            ("content-length:007 \r\n", Ok(Framing::Length(7))),
            ("Transfer-Encoding: Chunked\r\n", Ok(Framing::Chunked)),
            ("Content-Length: +2\r\n", Err(Refused::Malformed)),
            ("Content-Length: -1\r\n", Err(Refused::Malformed)),
            ("Content-Length: 2, 2\r\n", Err(Refused::Malformed)),
            ("Content-Length: \r\n", Err(Refused::Malformed)),
            (
                "Content-Length: 18446744073709551616\r\n",
                Err(Refused::Malformed),
            ),
            (
                "Content-Length: 2\r\nContent-Length: 2\r\n",
                Err(Refused::Malformed),
            ),
            (
                "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
                Err(Refused::Malformed),
            ),
            (
                "Transfer-Encoding: gzip, chunked\r\n",
                Err(Refused::Malformed),
            ),
            (
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
                Err(Refused::Malformed),
            ),
            ("Transfer-Encoding: xchunked\r\n", Err(Refused::Malformed)),
        ] {
            assert_eq!(framing(headers), want, "{headers}");
        }
    }

    #[test]
    fn what_is_not_a_plain_request_is_refused() {
        for head in [
            "\r\nPOST / HTTP/1.1\r\n",
            "POST  / HTTP/1.1\r\n",
            "POST / HTTP/1.1 \r\n",
            "POST / HTTP/2.0\r\n",
            "POST / http/1.1\r\n",
            "POST /\r\n",
            "POST * HTTP/1.1\r\n",
            "POST http://evil/ HTTP/1.1\r\n",
            "POST /a#b HTTP/1.1\r\n",
            "POST /ö HTTP/1.1\r\n",
            "PO\0ST / HTTP/1.1\r\n",
            "POST / HTTP/1.1\n",
            "POST / HTTP/1.1\r\nHost: h\n",
            "POST / HTTP/1.1\r\nHost : h\r\n",
            "POST / HTTP/1.1\r\nHost: h\r\n folded\r\n",
            "POST / HTTP/1.1\r\nHost: a\rb\r\n",
            "POST / HTTP/1.1\r\nHost: a\0b\r\n",
            "POST / HTTP/1.1\r\nHost\r\n",
            "POST / HTTP/1.1\r\n: h\r\n",
            "POST / HTTP/1.1\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
            "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
            "\x16\x03\x01",
            "PRI * HTTP/2.0\r\n",
        ] {
            assert_eq!(whole(head.as_bytes()), Err(Refused::Malformed), "{head:?}");
        }
    }

    #[test]
    fn sizes_are_bounded() {
        let many = format!("GET / HTTP/1.1\r\n{}", "a: b\r\n".repeat(MAX_HEADERS + 1));
        let long = format!(
            "GET / HTTP/1.1\r\nHost: h\r\na: {}\r\n\r\n",
            "x".repeat(16_384)
        );
        let target = format!("GET /{} HTTP/1.1\r\n", "x".repeat(MAX_TARGET_BYTES));
        assert_eq!(whole(many.as_bytes()), Err(Refused::TooLarge));
        assert_eq!(whole(long.as_bytes()), Err(Refused::TooLarge));
        assert_eq!(
            whole(&long.as_bytes()[..MAX_HEAD_BYTES]),
            Err(Refused::TooLarge)
        );
        assert_eq!(whole(target.as_bytes()), Err(Refused::TargetTooLong));
        assert_eq!(whole(&[b'A'; MAX_HEAD_BYTES]), Err(Refused::TargetTooLong));
    }

    proptest! {
        #[test]
        fn the_verdict_does_not_depend_on_how_bytes_arrive(
            lines in proptest::collection::vec("(Host|a|Content-Length|\\PC{0,3}): ?[0-9a\r\0]{0,3}\r?", 0..6),
            step in 1usize..40,
        ) {
            let mut bytes = b"POST /h HTTP/1.1\r\n".to_vec();
            for line in lines {
                bytes.extend_from_slice(line.as_bytes());
                bytes.push(b'\n');
            }
            bytes.extend_from_slice(b"\r\nBODY\n\r\n\r\n");
            let mut head = Head::default();
            let mut end = 0;
            let piecewise = loop {
                end = (end + step).min(bytes.len());
                match head.advance(&bytes[..end]) {
                    Ok(None) if end < bytes.len() => {}
                    verdict => break verdict,
                }
            };
            prop_assert_eq!(piecewise, whole(&bytes));
        }
    }
}
