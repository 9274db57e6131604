//! Lines of capabilities: each and what it was derived from, up to the root, kept once however many share it.

use std::collections::HashMap;

use distos_abi::MAX_DEPTH;

struct Link<T> {
    parent: Option<u64>,
    /// Whether it was revoked, and so whatever is below it.
    ended: bool,
    /// The links right below it, and the leases on it.
    users: u32,
    what: T,
}

/// Those of one connection. Links are known by numbers.
pub(crate) struct Lines<T> {
    links: HashMap<u64, Link<T>>,
}

impl<T> Default for Lines<T> {
    fn default() -> Lines<T> {
        Lines { links: HashMap::new() }
    }
}

/// What somebody says of a line that was said otherwise before.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Contradiction;

impl<T> Lines<T> {
    /// Adds a lease on the last of a line, whose root comes first.
    ///
    /// # Errors
    /// It is empty, deeper than a capability can be, or what is known of one of its links is something else; then
    /// nothing is added.
    pub(crate) fn add(&mut self, line: Vec<(u64, T)>) -> Result<(), Contradiction> {
        if line.is_empty() || line.len() > MAX_DEPTH {
            return Err(Contradiction);
        }
        for (index, (number, _)) in line.iter().enumerate() {
            let parent = index.checked_sub(1).map(|above| line[above].0);
            let contradicts = self.links.get(number).is_some_and(|known| known.parent != parent);
            if contradicts || line[..index].iter().any(|(above, _)| above == number) {
                return Err(Contradiction);
            }
        }
        let mut parent = None;
        for (number, what) in line {
            let is_new = !self.links.contains_key(&number);
            if is_new {
                self.links.insert(number, Link { parent, ended: false, users: 0, what });
                self.use_more(parent);
            }
            parent = Some(number);
        }
        self.use_more(parent);
        Ok(())
    }

    fn use_more(&mut self, number: Option<u64>) {
        if let Some(link) = number.and_then(|number| self.links.get_mut(&number)) {
            link.users = link.users.saturating_add(1);
        }
    }

    /// Takes back one lease on this link, and gives what nobody uses any more. The caller counts its leases.
    pub(crate) fn remove(&mut self, leaf: u64) -> Vec<(u64, T)> {
        let mut unused = Vec::new();
        let mut at = Some(leaf);
        while let Some(number) = at {
            let Some(link) = self.links.get_mut(&number) else { break };
            link.users = link.users.saturating_sub(1);
            if link.users > 0 {
                break;
            }
            at = link.parent;
            unused.extend(self.links.remove(&number).map(|link| (number, link.what)));
        }
        unused
    }

    /// Marks a link as revoked; whether it was known and not marked.
    pub(crate) fn end(&mut self, number: u64) -> bool {
        match self.links.get_mut(&number) {
            Some(link) => !std::mem::replace(&mut link.ended, true),
            None => false,
        }
    }

    /// Whether this link and all above it are known and not revoked.
    pub(crate) fn holds(&self, number: u64) -> bool {
        self.links.contains_key(&number) && !self.up(number).any(|link| self.is_marked(link))
    }

    /// This link and all above it.
    pub(crate) fn up(&self, number: u64) -> impl Iterator<Item = u64> {
        let parent = |number: &u64| self.links.get(number).and_then(|link| link.parent);
        std::iter::successors(Some(number), parent)
    }

    /// Whether it was revoked itself.
    pub(crate) fn is_marked(&self, number: u64) -> bool {
        self.links.get(&number).is_some_and(|link| link.ended)
    }

    /// Whether one above this link is revoked.
    pub(crate) fn is_below_an_end(&self, number: u64) -> bool {
        let parent = self.links.get(&number).and_then(|link| link.parent);
        parent.is_some_and(|parent| !self.holds(parent))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    /// What this link is.
    pub(crate) fn of(&self, number: u64) -> Option<&T> {
        self.links.get(&number).map(|link| &link.what)
    }

    /// What every link is.
    pub(crate) fn all(&self) -> impl Iterator<Item = &T> {
        self.links.values().map(|link| &link.what)
    }

    /// Every link that is not marked as revoked.
    pub(crate) fn unmarked(&self) -> impl Iterator<Item = (u64, &T)> {
        self.links
            .iter()
            .filter(|(_, link)| !link.ended)
            .map(|(number, link)| (*number, &link.what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(numbers: &[u64]) -> Vec<(u64, ())> {
        numbers.iter().map(|number| (*number, ())).collect()
    }

    #[test]
    fn whatever_is_below_a_revoked_link_has_ended_and_nothing_else() {
        let mut lines = Lines::default();
        for one in [&[1, 2, 3][..], &[1, 2, 4], &[1, 5], &[9]] {
            lines.add(line(one)).unwrap();
        }
        assert!([3, 4, 5, 9, 1].into_iter().all(|number| lines.holds(number)));
        assert!(lines.end(2) && !lines.end(2) && !lines.end(77));
        assert_eq!(
            [3, 4, 5, 9, 2, 77].map(|n| lines.holds(n)),
            [false, false, true, true, false, false]
        );
        assert!(lines.is_below_an_end(3) && !lines.is_below_an_end(2));
    }

    #[test]
    fn a_link_is_kept_exactly_while_somebody_uses_it() {
        let mut lines = Lines::default();
        for one in [&[1, 2, 3][..], &[1, 2, 3], &[1, 2]] {
            lines.add(line(one)).unwrap();
        }
        assert!(lines.remove(3).is_empty(), "it was lent twice");
        assert_eq!(lines.remove(3), line(&[3]));
        assert_eq!(lines.remove(2), line(&[2, 1]));
        assert!(lines.is_empty() && lines.remove(2).is_empty());
    }

    /// A home that says now this and now that would make a holder walk for ever, or use what has ended.
    #[test]
    fn a_line_that_contradicts_what_is_known_changes_nothing() {
        let mut lines = Lines::default();
        lines.add(line(&[1, 2])).unwrap();
        let deep: Vec<u64> = (10..10 + MAX_DEPTH as u64 + 1).collect();
        for wrong in [&[2, 1][..], &[2], &[1, 3, 1], &[3, 3], &[3, 2], &[], &deep] {
            assert_eq!(lines.add(line(wrong)), Err(Contradiction), "{wrong:?}");
        }
        assert_eq!(lines.all().count(), 2);
        assert_eq!(lines.remove(2), line(&[2, 1]));
    }
}
