//! What a crash may leave of the recorded calls, as POSIX has it and no file system improves on it.
//!
//! `fsync` or `fdatasync` of a file makes its bytes and length durable, of a directory its names;
//! neither does the other's. Until then each call may have reached the disk or not, whatever came
//! before or after it, and a write in any part of its 512-byte sectors, its length with or without
//! its bytes. A rename happens whole or not at all. Only what had returned before a sync began is
//! covered by it.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::trace::{Action, Call};

/// What a disk writes whole or not at all, in bytes.
pub const SECTOR: usize = 512;

type Inode = usize;
/// The directory that was recorded.
const ROOT: Inode = 0;

/// The content of a directory after a crash: relative path to bytes; `None` is a directory.
pub type Tree = BTreeMap<String, Option<Rc<Vec<u8>>>>;

/// A change that is not durable yet.
#[derive(Clone, Debug)]
pub struct Pending {
    id: usize,
    /// Whether its call has returned.
    done: bool,
    /// The file or directory whose sync makes it durable.
    inode: Inode,
    change: Change,
}

#[derive(Clone, Debug)]
enum Change {
    Data {
        offset: u64,
        bytes: Rc<Vec<u8>>,
    },
    /// Cuts or extends.
    Length(u64),
    /// Extends.
    Room(u64),
    Zeros {
        offset: u64,
        len: u64,
    },
    Name {
        name: String,
        inode: Inode,
    },
    NoName(String),
    /// Within one directory.
    Rename {
        from: String,
        to: String,
        inode: Inode,
    },
}

/// How much of a change the disk has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Nothing.
    Nothing,
    /// All.
    All,
    /// The first bytes of a write.
    First(usize),
    /// All sectors of a write but one.
    Without(usize),
    /// Those sectors of a write whose bit is one, counted modulo 64.
    Sectors(u64),
    /// Only a write's effect on the length.
    Length,
}

#[derive(Clone, Debug)]
enum Node {
    File(Rc<Vec<u8>>),
    Dir(BTreeMap<String, Inode>),
}

/// The disk at one moment of the record.
#[derive(Clone, Debug)]
pub struct Disk {
    durable: Vec<Node>,
    /// Names as a running program sees them.
    live: Vec<BTreeMap<String, Inode>>,
    pending: Vec<Pending>,
    /// Open descriptors and, for those that are written at their position, where that is.
    open: BTreeMap<u32, (Inode, u64)>,
    next: usize,
}

impl Disk {
    /// An empty directory.
    pub fn empty() -> Disk {
        Disk {
            durable: vec![Node::Dir(BTreeMap::new())],
            live: vec![BTreeMap::new()],
            pending: Vec::new(),
            open: BTreeMap::new(),
            next: 0,
        }
    }

    /// A directory that holds this, durably.
    pub fn holding(tree: &Tree) -> Disk {
        let mut disk = Disk::empty();
        for (path, content) in tree {
            let (dir, name) = disk.parent(path);
            let node = match content {
                Some(bytes) => Node::File(bytes.clone()),
                None => Node::Dir(BTreeMap::new()),
            };
            let inode = disk.add(node);
            disk.live[dir].insert(name.clone(), inode);
            if let Node::Dir(names) = &mut disk.durable[dir] {
                names.insert(name, inode);
            }
        }
        disk
    }

    /// A new process: descriptors are gone, what was written is there as before.
    pub fn next_life(&mut self) {
        self.open.clear();
        self.pending.iter_mut().for_each(|pending| pending.done = true);
    }

    fn add(&mut self, node: Node) -> Inode {
        self.durable.push(node);
        self.live.push(BTreeMap::new());
        self.durable.len() - 1
    }

    fn lookup(&self, path: &str) -> Option<Inode> {
        let parts = path.split('/').filter(|part| !part.is_empty());
        parts.into_iter().try_fold(ROOT, |dir, part| self.live[dir].get(part).copied())
    }

    fn parent(&self, path: &str) -> (Inode, String) {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        let dir = self.lookup(dir).expect("the call succeeded, so its directory is there");
        (dir, name.to_owned())
    }

    fn push(&mut self, inode: Inode, done: bool, change: Change) -> usize {
        self.next += 1;
        self.pending.push(Pending { id: self.next, done, inode, change });
        self.next
    }

    fn inode(&self, fd: u32) -> Inode {
        self.open.get(&fd).expect("the trace names only descriptors that were opened").0
    }

    /// A call begins: from here on a crash may find its effect. Returns what [`Disk::end`] needs.
    pub fn begin(&mut self, call: &Call) -> Vec<usize> {
        let change = match &call.action {
            Action::Write { fd, offset, bytes } => {
                let (inode, at) = self.open.get_mut(fd).expect("it was opened");
                let inode = *inode;
                let offset = offset.unwrap_or_else(|| {
                    *at += bytes.len() as u64;
                    *at - bytes.len() as u64
                });
                (inode, Change::Data { offset, bytes: Rc::new(bytes.clone()) })
            }
            Action::Truncate { fd, len } => (self.inode(*fd), Change::Length(*len)),
            Action::Allocate { fd, end } => (self.inode(*fd), Change::Room(*end)),
            Action::Punch { fd, offset, len } => {
                (self.inode(*fd), Change::Zeros { offset: *offset, len: *len })
            }
            Action::Sync(fd) => {
                let inode = self.inode(*fd);
                let covered = self.pending.iter().filter(|p| p.done && p.inode == inode);
                return covered.map(|pending| pending.id).collect();
            }
            _ => return Vec::new(),
        };
        vec![self.push(change.0, false, change.1)]
    }

    /// A call returns. Whether what a crash may find has changed.
    pub fn end(&mut self, call: &Call, begun: &[usize]) -> bool {
        match &call.action {
            Action::Sync(_) => {
                let (covered, pending): (Vec<_>, Vec<_>) =
                    self.pending.drain(..).partition(|p| begun.contains(&p.id));
                self.pending = pending;
                for change in &covered {
                    apply(&mut self.durable, change, &Part::All);
                }
                return !covered.is_empty();
            }
            Action::Open { path, fd, create, truncate } => {
                return self.opened(path, *fd, *create, *truncate);
            }
            Action::Close(fd) => {
                self.open.remove(fd);
                return false;
            }
            Action::MakeDir(path) => {
                let (dir, name) = self.parent(path);
                let inode = self.add(Node::Dir(BTreeMap::new()));
                self.live[dir].insert(name.clone(), inode);
                self.push(dir, true, Change::Name { name, inode });
            }
            Action::Rename(from, to) => {
                let ((dir, from), (other, to)) = (self.parent(from), self.parent(to));
                assert_eq!(dir, other, "renames across directories are not modelled");
                let inode = self.live[dir].remove(&from).expect("the rename succeeded");
                self.live[dir].insert(to.clone(), inode);
                self.push(dir, true, Change::Rename { from, to, inode });
            }
            Action::Remove(path) => {
                let (dir, name) = self.parent(path);
                self.live[dir].remove(&name);
                self.push(dir, true, Change::NoName(name));
            }
            Action::Say(_) => return false,
            Action::Write { .. }
            | Action::Truncate { .. }
            | Action::Allocate { .. }
            | Action::Punch { .. } => {
                let done = |pending: &&mut Pending| begun.contains(&pending.id);
                self.pending.iter_mut().filter(done).for_each(|pending| pending.done = true);
                return false;
            }
        }
        true
    }

    fn opened(&mut self, path: &str, fd: u32, create: bool, truncate: bool) -> bool {
        let known = self.lookup(path);
        let inode = known.unwrap_or_else(|| {
            assert!(create, "{path} was opened and is not there");
            self.add(Node::File(Rc::default()))
        });
        self.open.insert(fd, (inode, 0));
        if known.is_none() {
            let (dir, name) = self.parent(path);
            self.live[dir].insert(name.clone(), inode);
            self.push(dir, true, Change::Name { name, inode });
        } else if truncate {
            self.push(inode, true, Change::Length(0));
        }
        known.is_none() || truncate
    }

    /// The changes that a crash at this moment may lose.
    pub fn pending(&self) -> &[Pending] {
        &self.pending
    }

    /// What a crash leaves that keeps this part of each pending change.
    pub fn crash(&self, part: &dyn Fn(usize) -> Part) -> Tree {
        let mut nodes = self.durable.clone();
        for (at, pending) in self.pending.iter().enumerate() {
            apply(&mut nodes, pending, &part(at));
        }
        let mut tree = Tree::new();
        list(&nodes, ROOT, "", &mut tree);
        tree
    }
}

impl Pending {
    /// The bytes of a write.
    pub fn bytes(&self) -> Option<&[u8]> {
        match &self.change {
            Change::Data { bytes, .. } => Some(bytes),
            _ => None,
        }
    }

    /// Where a write begins.
    pub fn offset(&self) -> u64 {
        match &self.change {
            Change::Data { offset, .. } => *offset,
            _ => 0,
        }
    }
}

fn apply(nodes: &mut [Node], pending: &Pending, part: &Part) {
    if *part == Part::Nothing {
        return;
    }
    match (&mut nodes[pending.inode], &pending.change) {
        (Node::File(content), change) => change_file(Rc::make_mut(content), change, part),
        (Node::Dir(names), Change::Name { name, inode }) => {
            names.insert(name.clone(), *inode);
        }
        (Node::Dir(names), Change::NoName(name)) => {
            names.remove(name);
        }
        (Node::Dir(names), Change::Rename { from, to, inode }) => {
            names.remove(from);
            names.insert(to.clone(), *inode);
        }
        (Node::Dir(_), change) => unreachable!("{change:?} of a directory"),
    }
}

fn change_file(content: &mut Vec<u8>, change: &Change, part: &Part) {
    match change {
        Change::Data { offset, bytes } => {
            let offset = *offset as usize;
            if *part == Part::Length {
                content.resize(content.len().max(offset + bytes.len()), 0);
            }
            let mut at = 0;
            let mut sector = 0;
            while at < bytes.len() {
                let end = ((offset + at) / SECTOR + 1) * SECTOR - offset;
                let end = end.min(bytes.len());
                let kept = match part {
                    Part::All => end,
                    Part::First(count) => end.min(*count).max(at),
                    Part::Without(missing) if sector != *missing => end,
                    Part::Sectors(mask) if mask >> (sector % 64) & 1 == 1 => end,
                    _ => at,
                };
                if kept > at {
                    content.resize(content.len().max(offset + kept), 0);
                    content[offset + at..offset + kept].copy_from_slice(&bytes[at..kept]);
                }
                (at, sector) = (end, sector + 1);
            }
        }
        Change::Length(len) => content.resize(*len as usize, 0),
        Change::Room(end) => content.resize(content.len().max(*end as usize), 0),
        Change::Zeros { offset, len } => {
            let end = ((offset + len) as usize).min(content.len());
            content[(*offset as usize).min(end)..end].fill(0);
        }
        change => unreachable!("{change:?} of a file"),
    }
}

fn list(nodes: &[Node], dir: Inode, prefix: &str, into: &mut Tree) {
    let Node::Dir(names) = &nodes[dir] else { unreachable!("only directories are listed") };
    for (name, inode) in names {
        let path = format!("{prefix}{name}");
        match &nodes[*inode] {
            Node::File(bytes) => drop(into.insert(path, Some(bytes.clone()))),
            Node::Dir(_) => {
                into.insert(path.clone(), None);
                list(nodes, *inode, &format!("{path}/"), into);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn play(actions: Vec<Action>) -> Disk {
        let mut disk = Disk::empty();
        for (at, action) in actions.into_iter().enumerate() {
            let call = Call { start: at, end: Some(at), action };
            let begun = disk.begin(&call);
            disk.end(&call, &begun);
        }
        disk
    }

    fn create(path: &str, fd: u32) -> Action {
        Action::Open { path: path.into(), fd, create: true, truncate: true }
    }

    fn open(path: &str, fd: u32) -> Action {
        Action::Open { path: path.into(), fd, create: false, truncate: false }
    }

    fn write(fd: u32, offset: u64, bytes: &[u8]) -> Action {
        Action::Write { fd, offset: Some(offset), bytes: bytes.to_vec() }
    }

    fn file(tree: &Tree, path: &str) -> Option<Vec<u8>> {
        tree.get(path).map(|content| content.as_ref().unwrap().to_vec())
    }

    #[test]
    fn a_synced_file_is_lost_with_its_name_until_the_directory_is_synced() {
        let mut actions = vec![create("a", 3), write(3, 0, b"one"), Action::Sync(3)];
        assert_eq!(file(&play(actions.clone()).crash(&|_| Part::Nothing), "a"), None);
        actions.extend([open("", 4), Action::Sync(4), write(3, 3, b"two")]);
        let disk = play(actions);
        assert_eq!(file(&disk.crash(&|_| Part::Nothing), "a").unwrap(), b"one");
        assert_eq!(file(&disk.crash(&|_| Part::All), "a").unwrap(), b"onetwo");
        assert_eq!(file(&disk.crash(&|_| Part::Length), "a").unwrap(), b"one\0\0\0");
    }

    #[test]
    fn a_rename_is_whole_or_not_at_all_and_keeps_what_was_synced_behind_the_old_name() {
        let disk = play(vec![
            create("a", 3),
            write(3, 0, b"old"),
            Action::Sync(3),
            open("", 4),
            Action::Sync(4),
            create("b", 5),
            write(5, 0, b"new"),
            Action::Rename("b".into(), "a".into()),
        ]);
        assert_eq!(file(&disk.crash(&|_| Part::Nothing), "a").unwrap(), b"old");
        assert_eq!(file(&disk.crash(&|_| Part::All), "a").unwrap(), b"new");
        // The rename, without the bytes that nobody synced.
        let torn = disk.crash(&|at| if at == 1 { Part::Nothing } else { Part::All });
        assert_eq!((file(&torn, "a").unwrap(), file(&torn, "b")), (vec![], None));
    }

    #[test]
    fn a_write_is_torn_at_the_sectors_of_the_file() {
        let disk = play(vec![create("a", 3), write(3, 500, &[7; 600])]);
        let torn = |part: Part| {
            let tree = disk.crash(&|at| if at == 0 { Part::All } else { part.clone() });
            file(&tree, "a").unwrap()
        };
        assert_eq!(torn(Part::First(12)), [vec![0; 500], vec![7; 12]].concat());
        let middle = torn(Part::Without(1));
        assert_eq!((middle.len(), middle[511], middle[512], middle[1024]), (1100, 7, 0, 7));
    }

    #[test]
    fn a_sync_covers_only_what_had_returned_before_it_began() {
        let mut disk = play(vec![create("a", 3), open("", 4), Action::Sync(4)]);
        let (first, sync) = (write(3, 0, b"late"), Action::Sync(3));
        let call = |action: &Action| Call { start: 0, end: None, action: action.clone() };
        let writing = disk.begin(&call(&first));
        let syncing = disk.begin(&call(&sync));
        disk.end(&call(&first), &writing);
        disk.end(&call(&sync), &syncing);
        assert_eq!(file(&disk.crash(&|_| Part::Nothing), "a").unwrap(), b"");
    }
}
