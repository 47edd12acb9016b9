//! A record as bytes: how it lies in a spool file, and how it is found again in a damaged one.
//!
//! Owns format 1 of a frame and the search for frames in any bytes. Refuses to interpret topic, key, value
//! or headers.
//!
//! Guarantees: a frame that is taken for whole has the bytes that were written (64 bits of SHA-256 over all
//! of it), whatever happened to the file around it. The mark that starts a frame has a byte (0xff) that is
//! in no UTF-8 text, so no message text can look like a record of its own.
//!
//! Layout, little-endian: mark (8 bytes, the last is the format), check (8), number (8), time spooled (8,
//! milliseconds since 1970), length of the rest (4); then topic (length u16), key (length u32, all ones
//! where there is none), value (u32), number of headers (u16), each a name (u16) and a value (u32).

use std::fmt;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use std::fs::File;

/// Starts every frame; the last byte is the format.
const MARK: [u8; 8] = [0xff, b's', b'p', b'o', b'o', b'l', 0x00, 1];
/// What the check covers starts here.
const CHECKED: usize = 16;
/// Bytes before the record itself.
const HEAD_BYTES: usize = 36;
/// Length of a key that is not there.
const NO_KEY: u32 = u32::MAX;
/// Largest frame: a body of 256 KiB with key and headers stays far below.
pub(super) const MAX_FRAME_BYTES: usize = 1024 * 1024;
/// How much of a damaged file is looked at in one go.
const SCAN_BYTES: usize = 4 * MAX_FRAME_BYTES;

/// A record on its way into the spool: encoded once, in the one allocation that is written.
#[derive(Clone)]
pub struct Entry(Vec<u8>);

/// What a record consists of.
#[derive(Clone, PartialEq, Eq)]
pub struct Parts<'a> {
    /// The topic it is for.
    pub topic: &'a str,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its value.
    pub value: &'a [u8],
    /// Header names and values, in order.
    pub headers: Vec<(&'a str, &'a [u8])>,
}

impl Entry {
    /// Copies a record. `None` where a length does not fit the format: a frame above 1 MiB, which no
    /// callback comes near.
    pub fn encode(
        topic: &str,
        key: Option<&[u8]>,
        value: &[u8],
        headers: &[(&str, &[u8])],
    ) -> Option<Entry> {
        let headers_bytes: usize = headers.iter().map(|(n, v)| 6 + n.len() + v.len()).sum();
        let key_bytes = key.map_or(0, <[u8]>::len);
        let bytes = HEAD_BYTES + 12 + topic.len() + key_bytes + value.len() + headers_bytes;
        if bytes > MAX_FRAME_BYTES {
            return None;
        }
        let mut frame = Vec::with_capacity(bytes);
        frame.extend_from_slice(&MARK);
        frame.resize(HEAD_BYTES - 4, 0);
        let length = u32::try_from(bytes - HEAD_BYTES).expect("at most a frame");
        frame.extend_from_slice(&length.to_le_bytes());
        put_short(&mut frame, topic.as_bytes())?;
        match key {
            Some(key) => put_long(&mut frame, key),
            None => frame.extend_from_slice(&NO_KEY.to_le_bytes()),
        }
        put_long(&mut frame, value);
        let count = u16::try_from(headers.len()).ok()?;
        frame.extend_from_slice(&count.to_le_bytes());
        for (name, value) in headers {
            put_short(&mut frame, name.as_bytes())?;
            put_long(&mut frame, value);
        }
        debug_assert_eq!(frame.len(), bytes, "the one allocation is exact");
        Some(Entry(frame))
    }

    /// The record again.
    pub fn parts(&self) -> Parts<'_> {
        decode(&self.0).expect("encoded by this value itself")
    }

    /// Bytes it takes in the file.
    pub fn bytes(&self) -> usize {
        self.0.len()
    }

    /// Gives it its number and time, and makes it whole.
    pub(super) fn seal(mut self, number: u64, at_ms: i64) -> Vec<u8> {
        self.0[16..24].copy_from_slice(&number.to_le_bytes());
        self.0[24..32].copy_from_slice(&at_ms.to_le_bytes());
        let check = check(&self.0);
        self.0[8..16].copy_from_slice(&check);
        self.0
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Entry").field(&self.0.len()).finish()
    }
}

impl fmt::Debug for Parts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts")
            .field("topic", &self.topic)
            .field("value_bytes", &self.value.len())
            .field("headers", &self.headers.len())
            .finish_non_exhaustive()
    }
}

fn put_short(frame: &mut Vec<u8>, bytes: &[u8]) -> Option<()> {
    let length = u16::try_from(bytes.len()).ok()?;
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(bytes);
    Some(())
}

fn put_long(frame: &mut Vec<u8>, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).expect("at most a frame");
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(bytes);
}

/// A frame that was read and is whole.
#[derive(Clone, PartialEq, Eq)]
pub struct Stored {
    frame: Bytes,
}

impl Stored {
    /// `frame`, if it is whole.
    pub(super) fn read(frame: Bytes) -> Option<Stored> {
        whole(&frame)
            .is_some_and(|bytes| bytes == frame.len())
            .then_some(Stored { frame })
    }

    /// Its number: records are numbered in the order they were spooled in, and no number is used twice.
    pub fn number(&self) -> u64 {
        u64::from_le_bytes(field(&self.frame, 16))
    }

    /// When it was spooled, milliseconds since 1970.
    pub(super) fn at_ms(&self) -> i64 {
        i64::from_le_bytes(field(&self.frame, 24))
    }

    /// The record.
    pub fn parts(&self) -> Parts<'_> {
        decode(&self.frame).expect("a frame that is whole was encoded here")
    }

    pub(super) fn frame(&self) -> &[u8] {
        &self.frame
    }
}

impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stored")
            .field("number", &self.number())
            .field("bytes", &self.frame.len())
            .finish_non_exhaustive()
    }
}

fn field<const N: usize>(frame: &[u8], at: usize) -> [u8; N] {
    frame[at..at + N].try_into().expect("N bytes")
}

fn check(frame: &[u8]) -> [u8; 8] {
    let hash = Sha256::digest(&frame[CHECKED..]);
    hash[..8].try_into().expect("eight of 32 bytes")
}

/// The length of the whole frame that `bytes` starts with.
fn whole(bytes: &[u8]) -> Option<usize> {
    if bytes.len() < HEAD_BYTES || bytes[..8] != MARK {
        return None;
    }
    let length = u32::from_le_bytes(field(bytes, 32)) as usize;
    let frame = bytes.get(..HEAD_BYTES.checked_add(length)?)?;
    (check(frame) == bytes[8..16] && decode(frame).is_some()).then_some(frame.len())
}

fn decode(frame: &[u8]) -> Option<Parts<'_>> {
    let mut rest = frame.get(HEAD_BYTES..)?;
    let topic = std::str::from_utf8(take_short(&mut rest)?).ok()?;
    let key = match u32::from_le_bytes(*rest.first_chunk()?) {
        NO_KEY => {
            rest = &rest[4..];
            None
        }
        _ => Some(take_long(&mut rest)?),
    };
    let value = take_long(&mut rest)?;
    let (count, mut rest) = rest.split_first_chunk()?;
    let mut headers = Vec::new();
    for _ in 0..u16::from_le_bytes(*count) {
        let name = std::str::from_utf8(take_short(&mut rest)?).ok()?;
        headers.push((name, take_long(&mut rest)?));
    }
    rest.is_empty().then_some(Parts {
        topic,
        key,
        value,
        headers,
    })
}

fn take_short<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, after) = rest.split_first_chunk()?;
    let (taken, after) = after.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
    *rest = after;
    Some(taken)
}

fn take_long<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, after) = rest.split_first_chunk()?;
    let (taken, after) = after.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    *rest = after;
    Some(taken)
}

/// A whole frame found in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Found {
    pub(super) number: u64,
    pub(super) offset: u64,
    pub(super) bytes: usize,
}

/// Every whole frame in `file` whose number is in `numbers`, in the order of numbers, each once: a tree
/// that copies on write leaves older copies behind. Records that were removed long ago may be among them;
/// sent again they are repeats, and readers tell repeats by `ce_id`.
pub(super) fn search(file: &File, numbers: &Range<u64>) -> io::Result<Vec<Found>> {
    let end = file.metadata()?.len();
    let mut found = Vec::new();
    let mut window = Vec::new();
    let mut start = 0;
    while start < end {
        let size = usize::try_from(end - start).map_or(SCAN_BYTES, |left| left.min(SCAN_BYTES));
        window.resize(size, 0);
        file.read_exact_at(&mut window, start)?;
        // A frame that starts near the window's end is looked at whole in the next window.
        let last = start + size as u64 == end;
        let scanned = if last { size } else { size - MAX_FRAME_BYTES };
        let mut at = 0;
        while let Some(step) = mark_in(&window[at..], scanned.saturating_sub(at)) {
            at += step;
            match whole(&window[at..]) {
                Some(bytes) => {
                    found.push(Found {
                        number: u64::from_le_bytes(field(&window[at..], 16)),
                        offset: start + at as u64,
                        bytes,
                    });
                    at += bytes;
                }
                None => at += 1,
            }
        }
        start += scanned.max(at) as u64;
    }
    found.retain(|found| numbers.contains(&found.number));
    found.sort_unstable();
    found.dedup_by_key(|found| found.number);
    Ok(found)
}

/// Where the first mark starts within the first `limit` bytes.
fn mark_in(bytes: &[u8], limit: usize) -> Option<usize> {
    let mut at = 0;
    while at < limit {
        at += bytes[at..limit].iter().position(|byte| *byte == MARK[0])?;
        if bytes[at..].starts_with(&MARK) {
            return Some(at);
        }
        at += 1;
    }
    None
}

/// The frame that [`search`] found.
pub(super) fn read_found(file: &File, found: Found) -> io::Result<Option<Stored>> {
    let mut frame = vec![0; found.bytes];
    file.read_exact_at(&mut frame, found.offset)?;
    Ok(Stored::read(frame.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sealed(value: &[u8], number: u64) -> Vec<u8> {
        let headers: [(&str, &[u8]); 2] = [("ce_id", b"x"), ("odd", b"\xff\0")];
        let entry = Entry::encode("events", Some(b"conv"), value, &headers).unwrap();
        entry.seal(number, 7)
    }

    fn in_file(bytes: &[u8]) -> Vec<u64> {
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, bytes).unwrap();
        let found = search(&file, &(0..u64::MAX)).unwrap();
        for found in &found {
            let stored = read_found(&file, *found).unwrap().unwrap();
            assert_eq!(stored.number(), found.number);
        }
        found.into_iter().map(|found| found.number).collect()
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let frame = sealed(b"a value", 3);
        assert!(Stored::read(frame.clone().into()).is_some());
        for bit in 0..frame.len() * 8 {
            let mut damaged = frame.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Stored::read(damaged.into()).is_none(), "bit {bit}");
        }
        for length in 0..frame.len() {
            let cut = Bytes::copy_from_slice(&frame[..length]);
            assert!(Stored::read(cut).is_none(), "{length}");
        }
        let longer = [&frame[..], b"\0"].concat();
        assert!(Stored::read(longer.into()).is_none());
    }

    #[test]
    fn frames_are_found_anywhere_once_and_in_order() {
        let filler = vec![0xff; 5_000];
        // One frame lies across the border of two windows.
        let far = vec![0; SCAN_BYTES - MAX_FRAME_BYTES - 12_000];
        let large = sealed(&vec![b'x'; 300_000], 9);
        let mut torn = sealed(b"torn", 4);
        torn.truncate(torn.len() - 1);
        let parts: [&[u8]; 9] = [
            &torn,
            &sealed(b"two", 2),
            &filler,
            &sealed(b"one", 1),
            &sealed(b"two", 2),
            &far,
            &large,
            &far,
            &sealed(b"last", 10),
        ];
        assert_eq!(in_file(&parts.concat()), [1, 2, 9, 10]);
        assert_eq!(in_file(b""), [0; 0]);
    }

    #[test]
    fn a_frame_inside_a_value_is_part_of_that_value() {
        let inner = sealed(b"inner", 1);
        assert_eq!(in_file(&sealed(&inner, 5)), [5]);
    }

    #[test]
    fn what_is_too_large_is_no_entry() {
        let large = vec![0; MAX_FRAME_BYTES];
        assert!(Entry::encode("t", None, &large, &[]).is_none());
        let name = "n".repeat(70_000);
        assert!(Entry::encode("t", None, b"", &[(name.as_str(), &b""[..])]).is_none());
    }

    proptest! {
        #[test]
        fn a_record_is_what_it_was(
            topic in "[a-z.]{0,20}",
            key in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40)),
            value in proptest::collection::vec(any::<u8>(), 0..400),
            headers in proptest::collection::vec(
                ("[a-z_]{0,12}", proptest::collection::vec(any::<u8>(), 0..40)), 0..8),
            number in any::<u64>(),
            at_ms in any::<i64>(),
        ) {
            let headers: Vec<(&str, &[u8])> =
                headers.iter().map(|(name, value)| (name.as_str(), &value[..])).collect();
            let entry = Entry::encode(&topic, key.as_deref(), &value, &headers).unwrap();
            let bytes = entry.bytes();
            let parts = Parts { topic: &topic, key: key.as_deref(), value: &value, headers };
            prop_assert_eq!(&entry.parts(), &parts);
            let stored = Stored::read(entry.seal(number, at_ms).into()).unwrap();
            prop_assert_eq!(stored.frame().len(), bytes);
            prop_assert_eq!((stored.number(), stored.at_ms()), (number, at_ms));
            prop_assert_eq!(stored.parts(), parts);
        }
    }
}
