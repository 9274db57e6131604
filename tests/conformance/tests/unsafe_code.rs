//! `unsafe` has one address in each crate that needs it, so that it can be reviewed.
#![allow(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it should be"
)]
#![forbid(unsafe_code)]

use std::path::Path;

use distos_conformance::{code_only, files_in, is_word, read, root};

const ADDRESSES: [&str; 3] =
    ["kernel/host/src/sys.rs", "caps/table/src/map.rs", "caps/erasing/src/alloc.rs"];
/// Asks the kernel of Linux, by raw system calls, for what the sandbox must refuse.
const ATTACKER: &str = "kernel/host/tests/processes.rs";
const ROOMS: [&str; 5] = ["kernel", "caps", "schemas", "services", "tests"];

fn has_unsafe(source: &str) -> bool {
    code_only(source).split(|c| !is_word(c)).any(|word| word == "unsafe")
}

#[test]
fn unsafe_code_is_only_where_reviewers_look_for_it() {
    let elsewhere: Vec<_> = ROOMS
        .into_iter()
        .flat_map(|room| files_in(room, "rs"))
        .filter(|path| path != Path::new(ATTACKER))
        .filter(|path| !ADDRESSES.iter().any(|address| path == Path::new(address)))
        .filter(|path| has_unsafe(&read(path)))
        .collect();
    assert!(elsewhere.is_empty(), "unsafe code outside {ADDRESSES:?}: {elsewhere:?}");
}

#[test]
fn the_compiler_refuses_unsafe_code_in_every_crate() {
    let mut open = Vec::new();
    for path in ROOMS.into_iter().flat_map(|room| files_in(room, "rs")) {
        let folder = path.parent().unwrap();
        let is_bin = folder.ends_with("src/bin");
        let is_root =
            folder.ends_with("src") && (path.ends_with("lib.rs") || path.ends_with("main.rs"));
        // The schemas crate includes what capnpc generates; nothing in it is written by hand.
        if !(is_root || is_bin) || path.starts_with("schemas") {
            continue;
        }
        let source = read(&path);
        let crate_root =
            folder.ancestors().find(|f| root().join(f).join("Cargo.toml").exists()).unwrap();
        let has_address =
            ADDRESSES.iter().any(|address| Path::new(address).starts_with(crate_root));
        let is_shut = source.contains("#![forbid(unsafe_code)]")
            || (has_address && source.contains("#![deny(unsafe_code)]"));
        if !is_shut {
            open.push(path);
        }
    }
    assert!(open.is_empty(), "these do not start with #![forbid(unsafe_code)]: {open:?}");
}
