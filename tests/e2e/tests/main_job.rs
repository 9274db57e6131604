//! The main job: what a tenant stores and counts on a node is what Unix tools count on the same
//! bytes, in bounded memory (M2, M3, S2).
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use distos_e2e::{Node, distos, repository, run, wordcount};

const PAGE: usize = 65536;
const MIB: u64 = 1 << 20;
const LONG: Duration = Duration::from_secs(150);

/// What `wc` counts in the C locale over all files of a directory, in the order of their names.
fn wc(path: &Path) -> String {
    let script =
        "find \"$0\" -type f -print0 | LC_ALL=C sort -z | xargs -0 -r cat -- | LC_ALL=C wc";
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(script).arg(path);
    let output = run(command, b"", LONG);
    assert_eq!(output.code, 0, "{}", output.stderr);
    output.text().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The same by a map and a reduce on the node.
fn count(node: &Node, region: &str, more: &[&str]) -> String {
    let module = wordcount();
    let module = module.to_str().unwrap();
    let args = ["run", module, "--input", region, "--map", "map", "--reduce", "reduce"];
    let args = [&args[..], &["--as", "red.cap"], more].concat();
    let output = node.cli_with(&args, b"", LONG);
    assert_eq!(output.code, 0, "{}", output.stderr);
    output.text().trim().to_owned()
}

fn store_and_count(node: &Node, region: &str, text: &[u8]) -> (String, String) {
    let path = node.file(&format!("{region}.txt"));
    fs::write(&path, text).unwrap();
    node.ok(&["region", "put", region, path.to_str().unwrap(), "--as", "red.cap"]);
    (count(node, region, &[]), wc(&path))
}

#[test]
fn the_demo_does_every_step_of_the_main_job() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new(distos());
    command.current_dir(repository()).arg("demo").arg("--node").arg(directory.path().join("node"));
    // The demo runs the module that the repository's own commands build.
    wordcount();
    let output = run(command, b"", LONG);
    let said = output.text();
    assert_eq!(output.code, 0, "{said}\n{}", output.stderr);
    let steps = [
        ("image: single, signed by ", "step 1: whose word the image rests on"),
        ("memory", "a service and its protections"),
        ("seccomp", "a protection"),
        ("software TPM", "the label of the TPM, unless there is a hardware one"),
        ("tenant red", "step 3"),
        ("tenant blue", "step 3"),
        ("BLAKE3", "step 4"),
        ("unix ", "step 5: the count by Unix tools"),
        ("lines, words and bytes are the same", "step 5"),
        ("blue opens the region by its name: not found", "step 6: denied without a capability"),
        ("not authenticated", "step 6: a stolen file (C4)"),
        ("blue reads page 1: denied: this capability lacks the right to read", "step 6"),
        ("blue writes to page 0: denied: this capability lacks the right to write", "step 6"),
        ("revoked in ", "step 6: the time that revoking took"),
        ("after the revocation: revoked", "step 6"),
        ("the log is whole", "step 7"),
        ("signature", "step 7: the checkpoint"),
    ];
    for (text, step) in steps {
        let hardware = text == "software TPM" && said.contains("hardware TPM");
        assert!(said.contains(text) || hardware, "'{text}' ({step}) is not in\n{said}");
    }
}

/// One job over three nodes: its input at one, its tasks at another, its output at the third.
#[test]
fn the_demo_does_every_step_across_three_nodes_and_again_with_what_it_left() {
    let directory = tempfile::tempdir().unwrap();
    // The demo runs the module that the repository's own commands build.
    wordcount();
    for round in ["first", "second"] {
        let mut command = Command::new(distos());
        command.current_dir(repository()).args(["demo", "--nodes", "3", "--node"]);
        command.arg(directory.path().join("nodes"));
        let output = run(command, b"", LONG);
        let said = output.text();
        assert_eq!(output.code, 0, "{round}: {said}\n{}", output.stderr);
        assert!(!output.stderr.contains("panicked"), "{round}: {}", output.stderr);
        let steps = [
            ("lets in nobody but the others", "step 1: a cluster"),
            ("red counts words in parallel at node 2", "step 5"),
            ("lines, words and bytes are the same", "step 5"),
            ("node 2 read from node 1 and wrote to node 3 itself", "step 5: handoff"),
            ("blue is elsewhere, and reaches node 1 over QUIC", "step 6"),
            ("after the revocation: revoked", "step 6: over the network"),
        ];
        for (text, step) in steps {
            assert!(said.contains(text), "{round}: '{text}' ({step}) is not in\n{said}");
        }
        assert_eq!(said.matches("the log is whole").count(), 3, "{round}: step 7\n{said}");
    }
}

/// Copies of every readable file of the system's documentation under different names, until there
/// are at least `bytes`. Compressed files are taken as the bytes that they are.
fn corpus(at: &Path, bytes: u64) {
    let mut sources = Vec::new();
    for root in ["/usr/share/common-licenses", "/usr/share/doc"] {
        files_below(Path::new(root), &mut sources);
    }
    sources.sort();
    assert!(!sources.is_empty(), "this system has no documentation");
    fs::create_dir_all(at).unwrap();
    let (mut total, mut round) = (0, 0);
    while total < bytes {
        let directory = at.join(format!("copy-{round}"));
        fs::create_dir(&directory).unwrap();
        for (number, source) in sources.iter().enumerate() {
            if total < bytes {
                // A file that this user may not read is no part of the text.
                total += fs::copy(source, directory.join(format!("{number}.txt"))).unwrap_or(0);
            }
        }
        round += 1;
    }
}

fn files_below(directory: &Path, found: &mut Vec<PathBuf>) {
    let Ok(listing) = fs::read_dir(directory) else { return };
    for entry in listing.flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => files_below(&entry.path(), found),
            Ok(kind) if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
}

/// Runs `work` and returns with its result the most memory that the node had meanwhile.
fn watched<T>(node: &Node, work: impl FnOnce() -> T) -> (T, u64) {
    let (done, most) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                most.fetch_max(node.rss_bytes(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(25));
            }
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        done.store(true, Ordering::Relaxed);
        let result = result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (result, most.load(Ordering::Relaxed))
    })
}

#[test]
fn a_tenant_with_256_mib_of_text_gets_the_count_of_wc_from_a_node_below_600_mib() {
    let node = Node::boot();
    node.tenants(&["red"]);
    let text = node.file("text");
    corpus(&text, 256 * MIB);
    let path = text.to_str().unwrap();
    let (counted, most) = watched(&node, || {
        let put = ["region", "put", "text", path, "--as", "red.cap"];
        let put = node.cli_with(&put, b"", LONG);
        assert_eq!(put.code, 0, "{}", put.stderr);
        count(&node, "text", &[])
    });
    assert_eq!(counted, wc(&text));
    let bytes: u64 = counted.split(' ').next_back().unwrap().parse().unwrap();
    assert!(bytes >= 256 * MIB, "{counted}");
    assert!(most < 600 * MIB, "the node had {} MiB resident", most / MIB);
    eprintln!("{counted}; at most {} MiB resident", most / MIB);
}

#[test]
fn a_tenant_with_one_byte_or_no_words_gets_the_count_of_wc() {
    let node = Node::boot();
    node.tenants(&["red"]);
    let blank = [b' '; PAGE];
    let inputs: [(&str, &[u8]); 5] = [
        ("letter", b"x"),
        ("newline", b"\n"),
        ("blank", b" "),
        ("lines", b"\n\n \t\n"),
        ("page-of-blanks", &blank),
    ];
    for (name, text) in inputs {
        let (ours, theirs) = store_and_count(&node, name, text);
        assert_eq!(ours, theirs, "{name}");
    }
}

#[test]
fn a_word_that_straddles_pages_counts_once_for_a_tenant() {
    let node = Node::boot();
    node.tenants(&["red"]);
    // Six pages. Across each border stands another case.
    let mut text = vec![b' '; 6 * PAGE];
    text[PAGE - 3..PAGE + 3].copy_from_slice(b"across");
    text[2 * PAGE - 4..2 * PAGE].copy_from_slice(b"ends");
    text[3 * PAGE..3 * PAGE + 6].copy_from_slice(b"starts");
    // One word over a whole page and both of its borders.
    text[4 * PAGE - 1..5 * PAGE + 1].fill(b'w');
    let (ours, theirs) = store_and_count(&node, "words", &text);
    assert_eq!(theirs, format!("0 4 {}", 6 * PAGE));
    assert_eq!(ours, theirs);
    for pages_per_task in ["1", "2", "3", "6"] {
        assert_eq!(count(&node, "words", &["--pages-per-task", pages_per_task]), theirs);
    }
    // Words of seven letters with one blank: each border but few cuts a word.
    let lines: Vec<u8> = b"letters ".iter().copied().cycle().skip(3).take(5 * PAGE + 5).collect();
    let (ours, theirs) = store_and_count(&node, "letters", &lines);
    assert_eq!(ours, theirs);
    assert_eq!(count(&node, "letters", &["--pages-per-task", "1"]), theirs);
}

#[test]
fn a_tenant_gets_back_exactly_the_bytes_that_it_stored_through_a_pipe() {
    let node = Node::boot();
    node.tenants(&["red"]);
    let mut bytes = vec![0; 3 * PAGE + 17];
    File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    let put = ["region", "put", "random", "-", "--as", "red.cap"];
    let put = node.cli_with(&put, &bytes, LONG);
    assert_eq!(put.code, 0, "{}", put.stderr);
    let got = node.ok(&["region", "get", "random", "--as", "red.cap"]);
    assert!(got.stdout == bytes, "other bytes came back");
    let part = ["--offset", "65530", "--len", "20"];
    let got = node.ok(&[&["region", "get", "random", "--as", "red.cap"], &part[..]].concat());
    assert_eq!(got.stdout, bytes[65530..65550]);
}
