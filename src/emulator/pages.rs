//! Pages of a list and the tokens between them.
//!
//! Owns which items a page has and what its tokens say. Refuses to know what an item is: a list is a
//! number of positions, some of which the filter takes.
//!
//! Guarantees: lists grow at their end, what leaves them leaves its position unused, and a token names a
//! position. So a reader that follows `nextToken` sees each item that was there when it began and stays
//! once, whatever page sizes it asks for and whatever arrives or leaves meanwhile; `previousToken` walks the
//! same list backwards. A token of another list, another filter or another's invention is an error, never a
//! wrong page.
//!
//! Fails with [`BadToken`].

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// Items of a page where the request does not say (Twilio's default).
pub(crate) const DEFAULT_PAGE_SIZE: usize = 50;
/// Most items of a page (Twilio's limit).
pub(crate) const MAX_PAGE_SIZE: usize = 1_000;

/// A `pageToken` that this list did not give out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the pageToken is not one that this list gave out; begin without one")]
pub(crate) struct BadToken;

/// Where a page begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cursor {
    /// At this position, forwards.
    From(u64),
    /// Before this position, backwards.
    Before(u64),
}

/// A page's items, as positions in ascending order, and its neighbours.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) positions: Vec<u64>,
    pub(crate) next: Option<Cursor>,
    pub(crate) previous: Option<Cursor>,
}

/// Cuts the page at `cursor` out of a list: `up` gives its positions from one on in ascending order, `down`
/// those before one in descending order.
pub(crate) fn cut<U, D>(
    up: impl Fn(u64) -> U,
    down: impl Fn(u64) -> D,
    cursor: Cursor,
    size: usize,
) -> Page
where
    U: Iterator<Item = u64>,
    D: Iterator<Item = u64>,
{
    let positions: Vec<u64> = match cursor {
        Cursor::From(start) => up(start).take(size).collect(),
        Cursor::Before(end) => {
            let mut backwards: Vec<u64> = down(end).take(size).collect();
            backwards.reverse();
            backwards
        }
    };
    let (Cursor::From(at) | Cursor::Before(at)) = cursor;
    let first = positions.first().copied().unwrap_or(at);
    let after = positions.last().map_or(at, |last| last + 1);
    Page {
        next: up(after).next().map(|_| Cursor::From(after)),
        previous: down(first).next().map(|_| Cursor::Before(first)),
        positions,
    }
}

/// The same of the positions 0 to `length` that `takes` takes.
pub(crate) fn cut_slice(
    length: usize,
    takes: impl Fn(usize) -> bool + Copy,
    cursor: Cursor,
    size: usize,
) -> Page {
    let place = move |position: u64| usize::try_from(position).map_or(length, |p| p.min(length));
    let as_position = |place: usize| place as u64;
    cut(
        |from| {
            (place(from)..length)
                .filter(move |&p| takes(p))
                .map(as_position)
        },
        |to| {
            (0..place(to))
                .rev()
                .filter(move |&p| takes(p))
                .map(as_position)
        },
        cursor,
        size,
    )
}

/// What a token is bound to: the list and its filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ListKey(u64);

impl ListKey {
    /// The key of the list that these words describe.
    pub(crate) fn of(words: &[&str]) -> Self {
        // FNV-1a with a separator that no word contains. Not a secret: it finds mistakes, not forgers.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for word in words {
            for byte in word.bytes().chain([0xff]) {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
        ListKey(hash)
    }
}

/// The token that stands for `cursor` in the list `key`.
pub(crate) fn encode(cursor: Cursor, key: ListKey) -> String {
    let (direction, position) = match cursor {
        Cursor::From(position) => (0_u8, position),
        Cursor::Before(position) => (1, position),
    };
    let mut bytes = [0; TOKEN_BYTES];
    bytes[0] = direction;
    bytes[1..9].copy_from_slice(&position.to_be_bytes());
    bytes[9..].copy_from_slice(&check(direction, position, key).to_be_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The cursor that `token` stands for in the list `key`.
pub(crate) fn decode(token: &str, key: ListKey) -> Result<Cursor, BadToken> {
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| BadToken)?;
    let bytes: [u8; TOKEN_BYTES] = bytes.try_into().map_err(|_| BadToken)?;
    let (position, given) = bytes[1..].split_at(8);
    let position = u64::from_be_bytes(position.try_into().map_err(|_| BadToken)?);
    if given != check(bytes[0], position, key).to_be_bytes() {
        return Err(BadToken);
    }
    match bytes[0] {
        0 => Ok(Cursor::From(position)),
        1 => Ok(Cursor::Before(position)),
        _ => Err(BadToken),
    }
}

/// Direction, position, check.
const TOKEN_BYTES: usize = 1 + 8 + 8;

fn check(direction: u8, position: u64, key: ListKey) -> u64 {
    super::seeds::mix(key.0 ^ u64::from(direction), position)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn forwards(length: usize, takes: impl Fn(usize) -> bool + Copy, sizes: &[usize]) -> Vec<u64> {
        let mut seen = Vec::new();
        let mut cursor = Some(Cursor::From(0));
        let mut sizes = sizes.iter().cycle();
        while let Some(at) = cursor {
            let page = cut_slice(length, takes, at, *sizes.next().unwrap());
            seen.extend(&page.positions);
            cursor = page.next;
        }
        seen
    }

    proptest! {
        #[test]
        fn pages_of_any_size_are_the_list(length in 0_usize..200, keep in 1_usize..5, sizes in prop::collection::vec(1_usize..40, 1..5)) {
            let takes = |position: usize| position.is_multiple_of(keep);
            let whole: Vec<u64> = (0..length).filter(|&p| takes(p)).map(|p| p as u64).collect();
            prop_assert_eq!(forwards(length, takes, &sizes), whole.clone());

            let mut backwards = Vec::new();
            let mut cursor = Some(Cursor::Before(length as u64));
            while let Some(at) = cursor {
                let page = cut_slice(length, takes, at, sizes[0]);
                backwards.splice(0..0, page.positions);
                cursor = page.previous;
            }
            prop_assert_eq!(backwards, whole);
        }

        #[test]
        fn a_token_is_good_for_its_list_alone(position in any::<u64>(), before in any::<bool>()) {
            let cursor = if before { Cursor::Before(position) } else { Cursor::From(position) };
            let key = ListKey::of(&["conversations", "CLOSED"]);
            let token = encode(cursor, key);
            prop_assert_eq!(decode(&token, key), Ok(cursor));
            prop_assert_eq!(decode(&token, ListKey::of(&["conversations", "ACTIVE"])), Err(BadToken));
            prop_assert_eq!(decode(&token[1..], key), Err(BadToken));
        }
    }

    #[test]
    fn an_empty_page_at_the_end_still_leads_back() {
        let page = cut_slice(3, |_| true, Cursor::From(3), 2);
        assert_eq!(page.positions, Vec::<u64>::new());
        assert_eq!((page.next, page.previous), (None, Some(Cursor::Before(3))));
    }

    #[test]
    fn words_do_not_run_together() {
        assert_ne!(ListKey::of(&["ab", "c"]), ListKey::of(&["a", "bc"]));
    }
}
