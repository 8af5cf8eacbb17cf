//! The Merkle tree over the journal, in the shapes of [RFC 9162](https://www.rfc-editor.org/rfc/rfc9162#section-2.1)
//! with BLAKE3 in the place of SHA-256.
//!
//! The tree over `n` leaves splits at the largest power of two below `n`. A root stands for all leaves in their order;
//! an inclusion proof shows that a leaf is under a root, a consistency proof that a root covers all that an earlier one
//! did. Both are a few dozen digests however long the journal is.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::protocol::Digest;

/// Digests in a proof: trees of 2⁶³ leaves have no longer ones.
pub const PROOF_DIGESTS_MAX: usize = 64;

/// The digest of a leaf's content.
#[must_use]
pub fn leaf(content: &[u8]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[0]).update(content);
    Digest::from_bytes(*hasher.finalize().as_bytes())
}

/// The digest of a node with these children.
#[must_use]
pub fn node(left: &Digest, right: &Digest) -> Digest {
    let mut bytes = [1; 65];
    bytes[1..33].copy_from_slice(left.as_bytes());
    bytes[33..].copy_from_slice(right.as_bytes());
    Digest::of(&bytes)
}

/// The root of the empty tree.
#[must_use]
pub fn empty() -> Digest {
    Digest::of(&[])
}

/// The right edge of a growing tree: the roots of its full subtrees, largest first. All that it takes to add leaves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frontier {
    size: u64,
    peaks: Vec<Digest>,
}

impl Frontier {
    /// Leaves so far.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Adds a leaf.
    pub fn push(&mut self, leaf: Digest) {
        let mut node_ = leaf;
        // As many full subtrees join as the size has ones at its end.
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.peaks.pop() {
                node_ = node(&left, &node_);
            }
        }
        self.peaks.push(node_);
        self.size += 1;
    }

    /// The root of the tree.
    #[must_use]
    pub fn root(&self) -> Digest {
        let mut peaks = self.peaks.iter().rev();
        let Some(last) = peaks.next() else { return empty() };
        peaks.fold(*last, |right, left| node(left, &right))
    }
}

/// The root of the tree over `leaves`.
#[must_use]
pub fn root(leaves: &[Digest]) -> Digest {
    let mut frontier = Frontier::default();
    leaves.iter().for_each(|leaf| frontier.push(*leaf));
    frontier.root()
}

/// Where the tree over `size` leaves splits: the largest power of two below it.
fn split(size: usize) -> usize {
    size.next_power_of_two() / 2
}

/// The inclusion proof for leaf `index` of `leaves`, counted from 0; `None` when there is no such leaf.
#[must_use]
pub fn inclusion(leaves: &[Digest], index: usize) -> Option<Vec<Digest>> {
    if index >= leaves.len() {
        return None;
    }
    if leaves.len() == 1 {
        return Some(Vec::new());
    }
    let (left, right) = leaves.split_at_checked(split(leaves.len()))?;
    let (inside, index, beside) =
        if index < left.len() { (left, index, right) } else { (right, index - left.len(), left) };
    let mut path = inclusion(inside, index)?;
    path.push(root(beside));
    Some(path)
}

/// Whether `path` shows that `leaf` is number `index` (from 0) under `root`, the root of a tree of `size` leaves.
#[must_use]
pub fn included(leaf: Digest, index: u64, size: u64, path: &[Digest], root: Digest) -> bool {
    if index >= size || path.len() > PROOF_DIGESTS_MAX {
        return false;
    }
    // RFC 9162, 2.1.3.2.
    let (mut first, mut last, mut reached) = (index, size - 1, leaf);
    for beside in path {
        if last == 0 {
            return false;
        }
        if first % 2 == 1 || first == last {
            reached = node(beside, &reached);
            while first % 2 == 0 && first != 0 {
                first >>= 1;
                last >>= 1;
            }
        } else {
            reached = node(&reached, beside);
        }
        first >>= 1;
        last >>= 1;
    }
    last == 0 && reached == root
}

/// The proof that the tree over `leaves` covers the tree over its first `earlier`; `None` when it has fewer.
#[must_use]
pub fn consistency(leaves: &[Digest], earlier: usize) -> Option<Vec<Digest>> {
    if earlier > leaves.len() {
        return None;
    }
    if earlier == 0 || earlier == leaves.len() {
        return Some(Vec::new());
    }
    Some(subproof(leaves, earlier, true))
}

/// RFC 9162, 2.1.4.1. `whole`: the earlier tree is one of this tree's nodes, and its root is known.
fn subproof(leaves: &[Digest], earlier: usize, whole: bool) -> Vec<Digest> {
    if earlier == leaves.len() {
        return if whole { Vec::new() } else { vec![root(leaves)] };
    }
    let (left, right) = leaves.split_at(split(leaves.len()));
    if earlier <= left.len() {
        let mut path = subproof(left, earlier, whole);
        path.push(root(right));
        path
    } else {
        let mut path = subproof(right, earlier - left.len(), false);
        path.push(root(left));
        path
    }
}

/// Whether `path` shows that the tree of `size` leaves under `root` begins with the tree of `earlier` leaves under
/// `earlier_root`.
#[must_use]
pub fn consistent(earlier: u64, earlier_root: Digest, size: u64, root: Digest, path: &[Digest]) -> bool {
    if earlier > size || path.len() > PROOF_DIGESTS_MAX {
        return false;
    }
    if earlier == 0 {
        return path.is_empty() && earlier_root == empty();
    }
    if earlier == size {
        return path.is_empty() && earlier_root == root;
    }
    // RFC 9162, 2.1.4.2.
    let mut path = path.iter();
    let mut begin = Some(&earlier_root);
    if !earlier.is_power_of_two() {
        begin = path.next();
    }
    let Some(begin) = begin else { return false };
    let shift = (earlier - 1).trailing_ones();
    let (mut first, mut last) = ((earlier - 1) >> shift, (size - 1) >> shift);
    let (mut old, mut new) = (*begin, *begin);
    for beside in path {
        if last == 0 {
            return false;
        }
        if first % 2 == 1 || first == last {
            old = node(beside, &old);
            new = node(beside, &new);
            while first % 2 == 0 && first != 0 {
                first >>= 1;
                last >>= 1;
            }
        } else {
            new = node(&new, beside);
        }
        first >>= 1;
        last >>= 1;
    }
    last == 0 && old == earlier_root && new == root
}

/// Leaves in a block of a [`Tree`]: few enough to be read for each proof, so many that the nodes above them take a quarter
/// of a byte a leaf.
const BLOCK: u64 = 256;

/// The inner nodes of a growing tree, for proofs about it at any of its sizes that take the same time however long the
/// journal is. It keeps the roots of full blocks of leaves and what is above them; the leaves of the one to three blocks
/// that a proof goes through are handed in, by a function that gives exactly those of a range.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    size: u64,
    /// The block that is not full yet.
    block: Frontier,
    /// The roots of full subtrees, smallest first: of blocks, of pairs of them, and so on.
    levels: Vec<Vec<Digest>>,
}

impl Tree {
    /// Leaves so far.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Adds a leaf.
    pub fn push(&mut self, leaf: Digest) {
        self.size += 1;
        self.block.push(leaf);
        if self.block.size() < BLOCK {
            return;
        }
        let mut root = std::mem::take(&mut self.block).root();
        for level in 0.. {
            if self.levels.len() == level {
                self.levels.push(Vec::new());
            }
            let nodes = &mut self.levels[level];
            nodes.push(root);
            match nodes.as_slice() {
                [.., left, right] if nodes.len().is_multiple_of(2) => root = node(left, right),
                _ => return,
            }
        }
    }

    /// The inclusion proof for leaf `index` (from 0) under the first `size` leaves; `None` when there is no such leaf, or
    /// the tree is smaller.
    pub fn inclusion<E>(
        &self,
        index: u64,
        size: u64,
        read: &mut dyn FnMut(Range<u64>) -> Result<Vec<Digest>, E>,
    ) -> Result<Option<Vec<Digest>>, E> {
        if index >= size || size > self.size {
            return Ok(None);
        }
        self.path(index, 0..size, read).map(Some)
    }

    /// The proof that the first `size` leaves go on from the first `earlier`; `None` when there are fewer.
    pub fn consistency<E>(
        &self,
        earlier: u64,
        size: u64,
        read: &mut dyn FnMut(Range<u64>) -> Result<Vec<Digest>, E>,
    ) -> Result<Option<Vec<Digest>>, E> {
        if earlier > size || size > self.size {
            return Ok(None);
        }
        if earlier == 0 || earlier == size {
            return Ok(Some(Vec::new()));
        }
        self.growth(earlier, 0..size, true, read).map(Some)
    }

    /// The root over a range that the definition of the tree leads to.
    fn root<E>(
        &self,
        range: Range<u64>,
        read: &mut dyn FnMut(Range<u64>) -> Result<Vec<Digest>, E>,
    ) -> Result<Digest, E> {
        let length = range.end - range.start;
        if length.is_power_of_two() && length >= BLOCK {
            let level = (length / BLOCK).trailing_zeros() as usize;
            let place = usize::try_from(range.start / length).unwrap_or(usize::MAX);
            if let Some(root) = self.levels.get(level).and_then(|nodes| nodes.get(place)) {
                return Ok(*root);
            }
        }
        if length <= BLOCK {
            return Ok(root(&read(range)?));
        }
        let middle = middle(&range);
        Ok(node(&self.root(range.start..middle, read)?, &self.root(middle..range.end, read)?))
    }

    fn path<E>(
        &self,
        index: u64,
        range: Range<u64>,
        read: &mut dyn FnMut(Range<u64>) -> Result<Vec<Digest>, E>,
    ) -> Result<Vec<Digest>, E> {
        if range.end - range.start <= BLOCK {
            let inside = usize::try_from(index - range.start).unwrap_or(usize::MAX);
            return Ok(inclusion(&read(range)?, inside).unwrap_or_default());
        }
        let (left, right) = (range.start..middle(&range), middle(&range)..range.end);
        let (inside, beside) = if left.contains(&index) { (left, right) } else { (right, left) };
        let mut path = self.path(index, inside, read)?;
        path.push(self.root(beside, read)?);
        Ok(path)
    }

    /// As [`subproof`], which does it where all leaves are at hand.
    fn growth<E>(
        &self,
        earlier: u64,
        range: Range<u64>,
        whole: bool,
        read: &mut dyn FnMut(Range<u64>) -> Result<Vec<Digest>, E>,
    ) -> Result<Vec<Digest>, E> {
        if earlier == range.end {
            return if whole { Ok(Vec::new()) } else { Ok(vec![self.root(range, read)?]) };
        }
        if range.end - range.start <= BLOCK {
            let inside = usize::try_from(earlier - range.start).unwrap_or(usize::MAX);
            return Ok(subproof(&read(range)?, inside, whole));
        }
        let (left, right) = (range.start..middle(&range), middle(&range)..range.end);
        let (mut path, beside) = if earlier <= left.end {
            (self.growth(earlier, left, whole, read)?, right)
        } else {
            (self.growth(earlier, right, false, read)?, left)
        };
        path.push(self.root(beside, read)?);
        Ok(path)
    }
}

/// Where a tree over this range of leaves splits.
fn middle(range: &Range<u64>) -> u64 {
    range.start + (range.end - range.start).next_power_of_two() / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves(count: u64) -> Vec<Digest> {
        (0..count).map(|n| leaf(&n.to_be_bytes())).collect()
    }

    /// The definition of the RFC, 2.1.1.
    fn defined(leaves: &[Digest]) -> Digest {
        match leaves {
            [] => Digest::of(b""),
            [only] => *only,
            _ => {
                let at = (1..leaves.len()).rev().find(|at| at.is_power_of_two()).unwrap();
                node(&defined(&leaves[..at]), &defined(&leaves[at..]))
            }
        }
    }

    #[test]
    fn a_growing_tree_has_the_root_of_the_definition_at_every_size() {
        let leaves = leaves(70);
        let mut frontier = Frontier::default();
        for size in 0..=leaves.len() {
            assert_eq!(frontier.root(), defined(&leaves[..size]), "{size} leaves");
            assert_eq!(frontier.size(), size as u64);
            if let Some(leaf) = leaves.get(size) {
                frontier.push(*leaf);
            }
        }
    }

    #[test]
    fn every_leaf_has_an_inclusion_proof_at_every_size_and_it_proves_nothing_else() {
        let all = leaves(40);
        for size in 1..=all.len() {
            let (tree, root) = (&all[..size], root(&all[..size]));
            for (index, leaf) in tree.iter().enumerate() {
                let path = inclusion(tree, index).unwrap();
                let holds = |leaf, index, path: &[Digest], root| included(leaf, index as u64, size as u64, path, root);
                assert!(holds(*leaf, index, &path, root), "{index} of {size}");
                assert!(!holds(Digest::of(b"other"), index, &path, root));
                assert!(!holds(*leaf, index, &path, Digest::of(b"other")));
                assert!(!(0..size + 2).any(|other| other != index && holds(*leaf, other, &path, root)));
                let longer = [&path[..], &[Digest::of(b"more")]].concat();
                assert!(!holds(*leaf, index, &longer, root));
                for place in 0..path.len() {
                    let mut altered = path.clone();
                    altered[place] = Digest::of(b"altered");
                    assert!(!holds(*leaf, index, &altered, root));
                    altered.remove(place);
                    assert!(!holds(*leaf, index, &altered, root));
                }
            }
            assert_eq!(inclusion(tree, size), None);
        }
    }

    #[test]
    fn a_tree_that_keeps_only_inner_nodes_gives_the_same_proofs_and_reads_few_leaves() {
        let all = leaves(5 * BLOCK + 3);
        let mut tree = Tree::default();
        all.iter().for_each(|leaf| tree.push(*leaf));
        assert_eq!(tree.size(), all.len() as u64);
        let place = |n: u64| usize::try_from(n).unwrap();
        let edges = |most: u64| {
            (0..=5)
                .flat_map(|n| [-1, 0, 1, 100].map(|by| n * BLOCK as i64 + by))
                .filter_map(move |n| u64::try_from(n).ok().filter(|n| *n <= most))
        };
        for size in edges(tree.size()) {
            let known = &all[..place(size)];
            for other in edges(size) {
                let mut blocks = 0;
                let mut read = |range: Range<u64>| {
                    blocks += 1;
                    assert!(range.end - range.start <= BLOCK && range.end <= size);
                    Ok::<_, ()>(all[place(range.start)..place(range.end)].to_vec())
                };
                assert_eq!(
                    tree.inclusion(other, size, &mut read),
                    Ok(inclusion(known, place(other))),
                    "{other} of {size}"
                );
                assert_eq!(
                    tree.consistency(other, size, &mut read),
                    Ok(consistency(known, place(other))),
                    "{other} to {size}"
                );
                assert!(blocks <= 5, "{blocks} blocks were read for two proofs, {other} and {size}");
            }
        }
        let none = &mut |_| Err(());
        assert_eq!(tree.inclusion(0, tree.size() + 1, none), Ok(None));
        assert_eq!(tree.consistency(7, tree.size() + 1, none), Ok(None));
    }

    #[test]
    fn every_size_is_consistent_with_every_earlier_one_and_no_forged_history_is() {
        let all = leaves(33);
        for size in 0..=all.len() {
            for earlier in 0..=size {
                let (old, new) = (root(&all[..earlier]), root(&all[..size]));
                let path = consistency(&all[..size], earlier).unwrap();
                let holds = |old, new, path: &[Digest]| consistent(earlier as u64, old, size as u64, new, path);
                assert!(holds(old, new, &path), "{earlier} to {size}");
                if earlier == 0 {
                    continue;
                }
                let mut forged = all[..earlier].to_vec();
                forged[earlier / 2] = Digest::of(b"forged");
                assert!(!holds(root(&forged), new, &path), "{earlier} to {size}");
                assert!(!holds(old, Digest::of(b"other"), &path));
                assert!(!holds(old, new, &[&path[..], &[Digest::of(b"more")]].concat()));
                for place in 0..path.len() {
                    let mut altered = path.clone();
                    altered[place] = Digest::of(b"altered");
                    assert!(!holds(old, new, &altered), "{earlier} to {size}, {place}");
                }
            }
            assert_eq!(consistency(&all[..size], size + 1), None);
        }
    }
}
