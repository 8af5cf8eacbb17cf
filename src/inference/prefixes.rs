use std::collections::BTreeMap;

/// What was computed for texts before, by their tokens, so that a text that begins like one of them need not be computed
/// from its beginning. Holds so many bytes at most; what was not used for longest goes first. Pure: what it keeps is the
/// caller's.
#[derive(Debug)]
pub struct Prefixes<T> {
    bytes_max: usize,
    bytes: usize,
    clock: u64,
    kept: BTreeMap<Vec<u16>, Kept<T>>,
    /// When each was used last.
    used: BTreeMap<u64, Vec<u16>>,
}

#[derive(Debug)]
struct Kept<T> {
    what: T,
    bytes: usize,
    used: u64,
}

impl<T> Prefixes<T> {
    /// An empty one.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, bytes: 0, clock: 0, kept: BTreeMap::new(), used: BTreeMap::new() }
    }

    /// Whether it can keep anything.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.bytes_max > 0
    }

    /// Bytes that it holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether there is something for all of `tokens`.
    #[must_use]
    pub fn covers(&self, tokens: &[u16]) -> bool {
        self.nearest(tokens).is_some_and(|(common, _)| common == tokens.len())
    }

    /// What there is for the longest beginning of `tokens`, and how long that is: one token at least.
    pub fn find(&mut self, tokens: &[u16]) -> Option<(usize, &T)> {
        let (common, key) = self.nearest(tokens)?;
        let key = key.clone();
        let kept = self.kept.get_mut(&key)?;
        self.used.remove(&kept.used);
        self.clock += 1;
        kept.used = self.clock;
        self.used.insert(self.clock, key);
        Some((common, &kept.what))
    }

    /// Keeps what was computed for `tokens`, which takes so many bytes; in place of what there is for a beginning of them.
    pub fn keep(&mut self, tokens: Vec<u16>, what: T, bytes: usize) {
        let bytes = bytes + size_of_val(&tokens[..]) * 2;
        if bytes > self.bytes_max || tokens.is_empty() || self.covers(&tokens) {
            return;
        }
        // Of several beginnings of one text only the longest was left when it came, so there is one at most.
        let before = self.kept.range(..tokens.clone()).next_back().map(|(key, _)| key.clone());
        if let Some(before) = before.filter(|before| tokens.starts_with(before)) {
            self.drop(&before);
        }
        while self.bytes + bytes > self.bytes_max
            && let Some((_, oldest)) = self.used.pop_first()
        {
            self.drop(&oldest);
        }
        self.clock += 1;
        self.bytes += bytes;
        self.used.insert(self.clock, tokens.clone());
        self.kept.insert(tokens, Kept { what, bytes, used: self.clock });
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self::new(self.bytes_max);
    }

    fn drop(&mut self, tokens: &[u16]) {
        if let Some(kept) = self.kept.remove(tokens) {
            self.used.remove(&kept.used);
            self.bytes -= kept.bytes;
        }
    }

    /// The text that has the longest beginning in common with `tokens`: in order it stands right before or after them.
    fn nearest(&self, tokens: &[u16]) -> Option<(usize, &Vec<u16>)> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let before = self.kept.range::<[u16], _>((Unbounded, Included(tokens))).next_back();
        let after = self.kept.range::<[u16], _>((Excluded(tokens), Unbounded)).next();
        let common = |key: &[u16]| key.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        let both = before.into_iter().chain(after).map(|(key, _)| (common(key), key));
        both.max_by_key(|(common, _)| *common).filter(|(common, _)| *common > 0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tokens(text: &str) -> Vec<u16> {
        text.bytes().map(u16::from).collect()
    }

    fn found<T: Copy>(prefixes: &mut Prefixes<T>, text: &str) -> Option<(usize, T)> {
        prefixes.find(&tokens(text)).map(|(length, what)| (length, *what))
    }

    #[test]
    fn the_longest_common_beginning_is_found() {
        let mut prefixes = Prefixes::new(1000);
        for text in ["abcd", "abxy", "b"] {
            prefixes.keep(tokens(text), text, 10);
        }
        assert_eq!(found(&mut prefixes, "abce"), Some((3, "abcd")));
        assert_eq!(found(&mut prefixes, "abxyz"), Some((4, "abxy")));
        assert_eq!(found(&mut prefixes, "b"), Some((1, "b")));
        assert_eq!(found(&mut prefixes, "c"), None);
        assert!(prefixes.covers(&tokens("abx")) && !prefixes.covers(&tokens("abxyz")));
    }

    #[test]
    fn what_is_longer_replaces_its_beginning_and_what_is_shorter_is_not_kept() {
        let mut prefixes = Prefixes::new(1000);
        prefixes.keep(tokens("ab"), 1, 10);
        prefixes.keep(tokens("abc"), 2, 10);
        assert_eq!(found(&mut prefixes, "ab"), Some((2, 2)));
        let bytes = prefixes.bytes();
        prefixes.keep(tokens("ab"), 3, 10);
        assert_eq!((found(&mut prefixes, "ab"), prefixes.bytes()), (Some((2, 2)), bytes));
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first_and_what_is_too_large_is_not_kept() {
        let mut prefixes = Prefixes::new(40);
        prefixes.keep(tokens("a"), 1, 10);
        prefixes.keep(tokens("b"), 2, 10);
        found(&mut prefixes, "a");
        prefixes.keep(tokens("c"), 3, 10);
        assert_eq!((found(&mut prefixes, "a"), found(&mut prefixes, "b")), (Some((1, 1)), None));
        prefixes.keep(tokens("d"), 4, 100);
        assert_eq!(found(&mut prefixes, "d"), None);
        prefixes.clear();
        assert_eq!((found(&mut prefixes, "a"), prefixes.bytes()), (None, 0));
    }

    proptest! {
        /// Whatever is kept and asked for: what is found is the longest common beginning of what is there, in bounds.
        #[test]
        fn it_agrees_with_a_search_through_all(
            steps in prop::collection::vec((any::<bool>(), prop::collection::vec(0u16..3, 1..7), 1usize..30), 1..60),
        ) {
            let mut prefixes = Prefixes::new(200);
            for (keep, tokens, bytes) in steps {
                if keep {
                    prefixes.keep(tokens.clone(), tokens, bytes);
                } else {
                    let common = |key: &Vec<u16>| key.iter().zip(&tokens).take_while(|(a, b)| a == b).count();
                    let longest = prefixes.kept.keys().map(common).max().unwrap_or(0);
                    let found = prefixes.find(&tokens).map(|(length, what)| (length, what.clone()));
                    prop_assert_eq!(found.as_ref().map_or(0, |(length, _)| *length), longest);
                    if let Some((length, what)) = found {
                        prop_assert_eq!(&what[..length], &tokens[..length]);
                    }
                }
                prop_assert!(prefixes.bytes() <= 200);
                prop_assert_eq!(prefixes.kept.len(), prefixes.used.len());
                prop_assert_eq!(prefixes.kept.values().map(|kept| kept.bytes).sum::<usize>(), prefixes.bytes());
            }
        }
    }
}
