//! Files that are damaged, missing, somebody else's or from a newer version: each is told by name,
//! nothing is lost, and nothing is left running.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use distos_e2e::watch::{Watched, alone};
use distos_e2e::{Node, Output, single_image};

const SOON: Duration = Duration::from_secs(20);
const TEXT: &[u8] = b"what was acknowledged stays\n";

/// A node with the tenants red and blue; red has the region `kept`.
fn node() -> Node {
    let node = Node::boot();
    node.tenants(&["red", "blue"]);
    fs::write(node.file("kept.txt"), TEXT).expect("a file");
    node.ok(&["region", "put", "kept", "kept.txt", "--as", "red.cap"]);
    node
}

fn is_whole(node: &Node) {
    let back = node.ok(&["region", "get", "kept", "--as", "red.cap"]);
    assert_eq!(back.stdout, TEXT);
    node.ok(&["audit", "verify"]);
}

fn up(node: &Node) -> Output {
    let mut command = node.command(&["up"]);
    command.arg(node.image());
    alone(command, SOON)
}

fn overwrite(path: &Path, offset: u64, bytes: &[u8]) {
    let mut file = fs::OpenOptions::new().write(true).open(path).expect("a file of the node");
    file.seek(SeekFrom::Start(offset)).and_then(|_| file.write_all(bytes)).expect("written");
}

/// Puts a checksum into the last 32 bytes of a header, as the program that wrote it would.
fn seal(path: &Path, header: usize) {
    let bytes = fs::read(path).expect("a file of the node");
    let end = header - 32;
    overwrite(path, end as u64, blake3::hash(&bytes[..end]).as_bytes());
}

/// The first file in `directory` whose name starts with `prefix`.
fn first(directory: PathBuf, prefix: &str) -> PathBuf {
    let listing = fs::read_dir(&directory).expect("a directory of the node");
    let names = listing.map(|e| e.expect("an entry").path());
    let fits = |p: &PathBuf| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(prefix));
    let mut found: Vec<_> = names.filter(fits).collect();
    found.sort();
    found.into_iter().next().unwrap_or_else(|| panic!("{}/{prefix}*", directory.display()))
}

#[test]
fn a_second_node_on_the_same_directory_is_refused_and_the_first_goes_on() {
    let node = node();
    let before = node.processes().len();
    let output = up(&node);
    assert_eq!(output.code, 17, "{}", output.stderr);
    let pid = format!("(pid {})", node.up_pid());
    assert!(output.stderr.contains(&pid), "{}", output.stderr);
    assert!(output.stderr.contains("distos down"), "{}", output.stderr);
    let image = node.image();
    let image = image.to_str().expect("a plain path");
    let said = node.refused(&["up", image, "--detach"], 17);
    assert!(said.contains(&pid), "{said}");
    assert_eq!(node.processes().len(), before);
    is_whole(&node);
}

#[test]
fn a_directory_that_is_not_a_nodes_is_left_alone() {
    let node = Node::new(&single_image());
    fs::create_dir(node.directory()).expect("a directory");
    fs::write(node.directory().join("thesis.tex"), "x").expect("a file");
    let output = up(&node);
    assert_eq!(output.code, 16, "{}", output.stderr);
    assert!(output.stderr.contains("choose another --node"), "{}", output.stderr);
    assert_eq!(fs::read_dir(node.directory()).expect("it is there").count(), 1);
}

/// The directory of a newer program is refused, whichever of its files tells, and can be used by
/// that program afterwards: nothing in it was changed.
#[test]
fn a_directory_of_a_newer_version_is_refused_and_not_touched() {
    let mut node = node();
    node.down();
    let at = node.directory();
    let newer = [
        // Where its version stands, and the length of the header that its checksum seals.
        (at.join("VERSION"), 0, b'2', None),
        (first(at.join("kernel/journal"), "segment-"), 8, 2, None),
        (at.join("vats/memory/index.log"), 16, 2, Some(512)),
        (at.join("vats/audit/head"), 8, 2, Some(188)),
    ];
    for (file, offset, version, sealed) in newer {
        let original = fs::read(&file).expect("a file of the node");
        overwrite(&file, offset, &[version]);
        if let Some(len) = sealed {
            seal(&file, len);
        }
        let changed = fs::read(&file).expect("a file of the node");
        let output = up(&node);
        let name = file.display();
        assert!((10..=24).contains(&output.code), "{name}: {}", output.code);
        assert!(output.stderr.contains("newer"), "{name}: {}", output.stderr);
        assert!(changed == fs::read(&file).expect("it is there"), "{name} was written");
        overwrite(&file, 0, &original);
    }
    node.reboot();
    is_whole(&node);
}

/// A node does not go on from state that it cannot trust.
#[test]
fn a_flipped_byte_in_the_nodes_own_files_is_found_at_the_start() {
    let mut node = node();
    node.down();
    let at = node.directory();
    let journal = first(at.join("kernel/journal"), "segment-");
    let flips = [
        (journal.clone(), 40, "journal"),
        (journal, 200, "journal"),
        (at.join("vats/memory/index.log"), 600, "index.log"),
        (at.join("kernel/kernel.key"), 60, "kernel.key"),
        (at.join("operator/operator.pub"), 60, "operator.pub"),
        (at.join("VERSION"), 0, "VERSION"),
    ];
    for (file, offset, named) in flips {
        let original = fs::read(&file).expect("a file of the node");
        overwrite(&file, offset, &[original[usize::try_from(offset).expect("small")] ^ 0x40]);
        let output = up(&node);
        assert!((10..=24).contains(&output.code), "{named}: {} {}", output.code, output.stderr);
        assert!(output.stderr.contains(named), "{named} is not named: {}", output.stderr);
        overwrite(&file, 0, &original);
    }
    node.reboot();
    is_whole(&node);
}

#[test]
fn a_capability_file_that_is_cut_anywhere_is_told_as_such() {
    let node = node();
    let whole = fs::read(node.file("red.cap")).expect("red's file");
    fs::copy(node.file("red.key"), node.file("cut.key")).expect("a copy");
    for tenth in 0..10 {
        fs::write(node.file("cut.cap"), &whole[..whole.len() * tenth / 10]).expect("a file");
        let said = node.refused(&["region", "list", "--as", "cut.cap"], 16);
        assert!(said.contains("cut.cap: line "), "{said}");
    }
    is_whole(&node);
}

#[test]
fn a_flipped_byte_anywhere_in_a_capability_file_is_found() {
    let node = node();
    let whole = fs::read(node.file("red.cap")).expect("red's file");
    fs::copy(node.file("red.key"), node.file("flip.key")).expect("a copy");
    for at in (0..whole.len()).step_by(whole.len() / 40) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x04;
        fs::write(node.file("flip.cap"), &bytes).expect("a file");
        let said = node.refused(&["region", "list", "--as", "flip.cap"], 16);
        assert!(said.contains("flip.cap"), "byte {at}: {said}");
    }
}

#[test]
fn a_key_that_is_missing_wrong_or_broken_is_told_by_name() {
    let node = node();
    let list = ["region", "list", "--as", "lone.cap"];
    fs::copy(node.file("red.cap"), node.file("lone.cap")).expect("a copy");
    let said = node.refused(&list, 15);
    assert!(said.contains("lone.key (the secret key of lone.cap)"), "{said}");
    fs::copy(node.file("blue.key"), node.file("lone.key")).expect("a copy");
    let said = node.refused(&list, 22);
    assert!(said.contains("lone.key is not the key of lone.cap"), "{said}");
    let key = fs::read(node.file("red.key")).expect("red's key");
    fs::write(node.file("lone.key"), &key[..key.len() / 2]).expect("a file");
    let said = node.refused(&list, 16);
    assert!(said.contains("lone.key"), "{said}");
    assert!(!said.contains(std::str::from_utf8(&key[30..50]).expect("text")), "it shows the key");
    fs::remove_file(node.file("lone.key")).expect("it is there");
    fs::create_dir(node.file("lone.key")).expect("a directory");
    assert!(node.refused(&list, 16).contains("is a directory"));
}

#[test]
fn a_capability_of_another_node_opens_nothing_here() {
    let (here, there) = (node(), node());
    for name in ["red.cap", "red.key"] {
        fs::copy(there.file(name), here.file(&format!("other-{name}"))).expect("a copy");
    }
    let (cap, key) = (here.file("other-red.cap"), here.file("other-red.key"));
    assert!(cap.is_file() && key.is_file());
    // DISTOS_NODE says `here`; what the file itself says does not count then.
    let said = here.refused(&["region", "list", "--as", "other-red.cap"], 16);
    assert!(said.contains("another vat or node"), "{said}");
    is_whole(&here);
    is_whole(&there);
}

#[test]
fn input_that_cannot_be_read_makes_no_region() {
    let node = node();
    symlink("nowhere", node.file("dangling")).expect("a link");
    fs::create_dir(node.file("hollow")).expect("a directory");
    symlink("../kept.txt", node.file("hollow/link")).expect("a link");
    fs::write(node.file("empty"), "").expect("a file");
    for (input, code) in [
        ("nosuch", 15),
        ("dangling", 15),
        ("hollow", 16),
        ("empty", 16),
        ("/dev/null", 16),
        ("kept.txt/below", 16),
    ] {
        let said = node.refused(&["region", "put", "new", input, "--as", "red.cap"], code);
        assert!(said.contains(input), "{said}");
    }
    // Reading it fails after its length is known.
    let said = node.cli(&["region", "put", "new", "/proc/self/mem", "--as", "red.cap"]);
    assert_ne!(said.code, 0);
    only_kept(&node);
}

fn only_kept(node: &Node) {
    let list = node.json(&["region", "list", "--as", "red.cap"]);
    let names: Vec<_> = list["regions"].as_array().expect("a list").iter().collect();
    assert!(names.len() == 1 && names[0]["name"] == "kept", "{list}");
    assert_eq!(list["used_bytes"], TEXT.len(), "quota was not given back: {list}");
}

/// What is stored is what the file was, or nothing: never a file padded with zeros.
#[test]
fn input_that_shrinks_while_it_is_read_is_a_fault_and_leaves_no_region() {
    let node = node();
    let path = node.file("shrinking");
    let mut refusals = 0;
    for attempt in 0..20 {
        let file = fs::File::create(&path).expect("a file");
        file.set_len(256 << 20).expect("a sparse file");
        let args = ["region", "put", "shrinking", "shrinking", "--as", "red.cap"];
        let mut put = Watched::spawn(node.command(&args));
        put.run_for(Duration::from_millis(20 + 15 * attempt));
        file.set_len(1 << 20).expect("it is cut");
        let output = put.finish(Duration::from_secs(60));
        match output.code {
            0 => drop(node.ok(&["region", "drop", "shrinking", "--as", "red.cap"])),
            16 => {
                assert!(output.stderr.contains("became shorter"), "{}", output.stderr);
                refusals += 1;
            }
            code => panic!("{code}: {}", output.stderr),
        }
        only_kept(&node);
        if refusals > 0 {
            return;
        }
    }
    panic!("the file was never cut while it was read");
}

#[test]
fn input_that_grows_while_it_is_read_is_stored_as_long_as_it_was() {
    let node = node();
    let path = node.file("growing");
    let file = fs::File::create(&path).expect("a file");
    file.set_len(64 << 20).expect("a sparse file");
    let args = ["region", "put", "growing", "growing", "--as", "red.cap"];
    let mut put = Watched::spawn(node.command(&args));
    let mut more = fs::OpenOptions::new().append(true).open(&path).expect("the file");
    while put.run_for(Duration::from_millis(2)) {
        more.write_all(&[b'x'; 4096]).expect("it grows");
    }
    let output = put.finish(SOON);
    assert_eq!(output.code, 0, "{}", output.stderr);
    let list = node.json(&["region", "list", "--as", "red.cap"]);
    let region =
        list["regions"].as_array().expect("a list").iter().find(|r| r["name"] == "growing");
    let bytes = region.expect("it is stored")["bytes"].as_u64().expect("a number");
    assert!((64 << 20..=path.metadata().expect("a file").len()).contains(&bytes), "{bytes}");
}

#[test]
fn output_that_cannot_be_written_is_told_and_leaves_nothing() {
    let node = node();
    fs::create_dir(node.file("folder")).expect("a directory");
    let count = || fs::read_dir(node.work()).expect("the directory").count();
    let before = count();
    for (place, code) in
        [("nosuch/out", 15), ("folder", 16), ("kept.txt/out", 16), ("/proc/out", 15)]
    {
        let said = node.refused(&["region", "get", "kept", "-o", place, "--as", "red.cap"], code);
        assert!(said.contains(place), "{said}");
        assert_eq!(count(), before, "{place}: something is left");
    }
    let mut full = node.command(&["region", "get", "kept", "--as", "red.cap"]);
    let sink = fs::OpenOptions::new().write(true).open("/dev/full").expect("Linux");
    full.stdout(sink);
    let output = full.output().expect("distos can be started");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(17), "{said}");
    assert!(said.contains("No space left"), "{said}");
    is_whole(&node);
}

#[test]
fn bytes_beyond_a_regions_end_are_refused_and_not_read_as_nothing() {
    let node = node();
    for args in [&["--offset", "1000000"][..], &["--offset", "4", "--len", "1000"]] {
        let args = [&["region", "get", "kept", "--as", "red.cap"], args].concat();
        let said = node.refused(&args, 16);
        assert!(said.contains("end"), "{said}");
    }
}
