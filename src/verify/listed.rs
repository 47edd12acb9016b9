//! The closed conversations that the API lists, as a set that costs some 50 bytes an id.
//!
//! One text for all ids, and where each begins: ten million ids are half a gigabyte, which as strings in a
//! tree would be two. Sorted, so that a look-up is a binary search.

use std::collections::BTreeSet;

use super::VerifyError;
use crate::api::Api;

/// Pages of the API's list at most: a list that goes in circles ends here, as an error.
pub(super) const MAX_PAGES: u64 = 1_000_000;

/// Ids, and whether each was met in the lake.
#[derive(Debug, Default, Clone)]
pub(super) struct Listed {
    text: String,
    /// Where an id begins, its length, and whether it was met.
    ids: Vec<(usize, u16, bool)>,
}

impl Listed {
    /// Reads the list to its end.
    pub(super) async fn read(api: &Api) -> Result<Listed, VerifyError> {
        let mut listed = Listed::default();
        let mut token: Option<String> = None;
        let mut seen = BTreeSet::new();
        for _ in 0..MAX_PAGES {
            let page = api.closed_conversations_page(token.as_deref()).await?.value;
            let ids = page.items.iter().filter_map(|item| item.id.as_deref());
            ids.for_each(|id| listed.add(id));
            match page.next_token {
                None => {
                    listed.sort();
                    return Ok(listed);
                }
                Some(next) if !seen.insert(next.clone()) => return Err(VerifyError::EndlessList),
                next => token = next,
            }
        }
        Err(VerifyError::EndlessList)
    }

    fn add(&mut self, id: &str) {
        // `api` takes no id above 256 bytes.
        let length = u16::try_from(id.len()).expect("an id has at most 256 bytes");
        self.ids.push((self.text.len(), length, false));
        self.text.push_str(id);
    }

    /// A conversation can be on two pages, where the list moved between them.
    fn sort(&mut self) {
        let text = &self.text;
        let id = |at: &(usize, u16, bool)| &text[at.0..at.0 + usize::from(at.1)];
        self.ids.sort_unstable_by(|a, b| id(a).cmp(id(b)));
        self.ids.dedup_by(|a, b| id(a) == id(b));
    }

    fn at(&self, index: usize) -> &str {
        let (start, length, _) = self.ids[index];
        &self.text[start..start + usize::from(length)]
    }

    fn find(&self, id: &str) -> Option<usize> {
        let text = &self.text;
        let compare = |at: &(usize, u16, bool)| text[at.0..at.0 + usize::from(at.1)].cmp(id);
        self.ids.binary_search_by(compare).ok()
    }

    pub(super) fn contains(&self, id: &str) -> bool {
        self.find(id).is_some()
    }

    /// The lake has it.
    pub(super) fn met(&mut self, id: &str) {
        if let Some(index) = self.find(id) {
            self.ids[index].2 = true;
        }
    }

    /// Those that the lake was not seen to have.
    pub(super) fn unmet(&self) -> impl Iterator<Item = &str> {
        let unmet = self.ids.iter().enumerate().filter(|(_, (.., met))| !met);
        unmet.map(|(index, _)| self.at(index))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_set(ids in prop::collection::vec("[a-cé]{1,3}", 0..40), met in prop::collection::vec("[a-cé]{1,3}", 0..40)) {
            let mut listed = Listed::default();
            ids.iter().for_each(|id| listed.add(id));
            listed.sort();
            let mut want: BTreeSet<&str> = ids.iter().map(String::as_str).collect();
            for id in &met {
                prop_assert_eq!(listed.contains(id), ids.contains(id));
                listed.met(id);
                want.remove(id.as_str());
            }
            prop_assert_eq!(listed.unmet().collect::<Vec<_>>(), want.into_iter().collect::<Vec<_>>());
        }
    }
}
