//! Digests: order-free sums over registrations, kept up to date with every change.
//!
//! A session and a data node that hold the same registrations have the same digest, so an idle comparison is one number.
//! Where it differs, the comparison narrows to data ids and then to registrations ([`compare`]).
//!
//! A digest is the wrapping sum of a 64-bit mix of each registration's identity, version and content checksum. It guards
//! against loss and mistakes, not against an attacker who chooses register ids to collide.

use std::collections::BTreeMap;

use crate::id::{DatumKey, RegisterId, Version, mix64};

/// Sum and count of a set of registrations.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Digest {
    /// Wrapping sum of [`fingerprint`]s.
    pub sum: u64,
    /// Registrations summed.
    pub count: u64,
}

impl Digest {
    /// Takes one registration in.
    pub fn add(&mut self, fingerprint: u64) {
        self.sum = self.sum.wrapping_add(fingerprint);
        self.count += 1;
    }

    /// Takes one registration out.
    pub fn remove(&mut self, fingerprint: u64) {
        assert!(self.count > 0, "only what was added is removed");
        self.sum = self.sum.wrapping_sub(fingerprint);
        self.count -= 1;
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// What one registration adds to a digest.
pub fn fingerprint(datum: DatumKey, register: RegisterId, version: Version, checksum: u64) -> u64 {
    let identity = mix64(datum.0 ^ mix64(register.0));
    let state = mix64(version.number ^ mix64(u64::from(version.attach)));
    mix64(identity ^ state.rotate_left(17) ^ checksum)
}

/// Where two sides differ, seen from the side that asks.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Differences<K> {
    /// Only the other side has it.
    pub added: Vec<K>,
    /// Both have it, differently.
    pub updated: Vec<K>,
    /// Only this side has it.
    pub removed: Vec<K>,
}

impl<K> Differences<K> {
    /// Whether both sides are alike.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.updated.is_empty() && self.removed.is_empty()
    }
}

/// Compares two sides by key: digests by data id, or fingerprints by registration.
pub fn compare<K: Ord + Copy, V: PartialEq>(
    mine: &BTreeMap<K, V>,
    theirs: &BTreeMap<K, V>,
) -> Differences<K> {
    let mut differences = Differences { added: Vec::new(), updated: Vec::new(), removed: Vec::new() };
    for (key, value) in theirs {
        match mine.get(key) {
            None => differences.added.push(*key),
            Some(own) if own != value => differences.updated.push(*key),
            Some(_) => {}
        }
    }
    differences.removed.extend(mine.keys().filter(|key| !theirs.contains_key(key)));
    differences
}

/// One page of keys for an exchange that is too large for one frame: at least one key, then as many as cost at most
/// `budget` together. Returns the page and whether more remain after it.
pub fn page<K: Copy>(keys: &[K], cost: impl Fn(K) -> usize, budget: usize) -> (&[K], bool) {
    let mut spent = 0usize;
    let mut taken = 0;
    for key in keys {
        spent = spent.saturating_add(cost(*key));
        if taken > 0 && spent > budget {
            break;
        }
        taken += 1;
    }
    (&keys[..taken], taken < keys.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_does_not_depend_on_order_and_notices_every_field() {
        let version = Version { number: 1, attach: 1 };
        let of = |register: u64, version, checksum| {
            fingerprint(DatumKey(1), RegisterId(register), version, checksum)
        };
        let (mut ab, mut ba) = (Digest::default(), Digest::default());
        [1, 2].into_iter().for_each(|r| ab.add(of(r, version, 5)));
        [2, 1].into_iter().for_each(|r| ba.add(of(r, version, 5)));
        assert_eq!(ab, ba);
        ba.remove(of(2, version, 5));
        ba.add(of(2, Version { number: 1, attach: 2 }, 5));
        assert_ne!(ab, ba);
        assert_ne!(of(1, version, 5), of(1, version, 6));
    }

    #[test]
    fn digest_difference_reports_nothing_added_updated_and_removed() {
        let mine = BTreeMap::from([(1, 10), (2, 20), (3, 30)]);
        assert!(compare(&mine, &mine).is_empty());
        let theirs = BTreeMap::from([(2, 20), (3, 31), (4, 40)]);
        let found = compare(&mine, &theirs);
        assert_eq!((found.added, found.updated, found.removed), (vec![4], vec![3], vec![1]));
    }

    #[test]
    fn a_page_holds_at_least_one_key_and_says_whether_more_remain() {
        let keys = [1usize, 2, 3, 4];
        assert_eq!(page(&keys, |_| 100, 1), (&keys[..1], true), "one key even if it costs too much");
        assert_eq!(page(&keys, |key| key, 6), (&keys[..3], true));
        assert_eq!(page(&keys[3..], |key| key, 6), (&keys[3..], false));
        assert_eq!(page(&[] as &[usize], |key| key, 6), (&[][..], false));
    }
}
