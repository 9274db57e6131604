//! The demo's guest program counts exactly what `LC_ALL=C wc` counts, however a text is cut.

// Helpers stop at the first surprise, as the tests themselves do.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Compiles the guest program for this machine: it is plain C.
fn wordcount(dir: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/wordcount.c");
    let program = dir.join("wordcount");
    let mut cc = Command::new("cc");
    cc.args(["-O2", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&program).arg(source);
    assert!(cc.status().expect("a C compiler").success());
    program
}

fn output(program: &Path, args: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(args)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Inputs fit into the pipe's buffer, so writing cannot wait for reading.
    assert!(input.len() < 65_536);
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    output.stdout
}

fn counts(text: &[u8]) -> Vec<u64> {
    let text = String::from_utf8(text.to_vec()).unwrap();
    text.split_whitespace().map(|n| n.parse().unwrap()).collect()
}

/// A generator whose failing cases replay: SplitMix64.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % limit as u64).unwrap()
    }

    fn text(&mut self) -> Vec<u8> {
        let alphabets: [&[u8]; 4] =
            [b"ab \n", b"a \n\x01\x7f", b"\x80\xffa \x0b\x0c\r\t", b"aaaaaaaaab "];
        let alphabet = alphabets[self.below(alphabets.len())];
        let len = self.below(80);
        (0..len).map(|_| alphabet[self.below(alphabet.len())]).collect()
    }
}

#[test]
fn a_text_in_parts_counts_as_wc_counts_the_whole() {
    let dir = tempfile::tempdir().unwrap();
    let program = wordcount(dir.path());
    for seed in 0..120 {
        let mut numbers = Numbers(seed);
        let text = numbers.text();
        let expected = counts(&output(Path::new("wc"), &[], &text));
        assert_eq!(counts(&output(&program, &[], &text)), expected, "seed {seed}");
        let mut cuts: Vec<usize> =
            (0..numbers.below(6)).map(|_| numbers.below(text.len() + 1)).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let parts = cuts.windows(2).map(|cut| output(&program, &["map"], &text[cut[0]..cut[1]]));
        let joined: Vec<u8> = parts.flatten().collect();
        assert_eq!(
            counts(&output(&program, &["reduce"], &joined)),
            expected,
            "seed {seed}, cuts {cuts:?}"
        );
    }
}

#[test]
fn a_word_that_straddles_many_parts_counts_once() {
    let dir = tempfile::tempdir().unwrap();
    let program = wordcount(dir.path());
    let parts: [&[u8]; 5] = [b"one tw", b"\x01", b"", b"o", b"ooo three\n"];
    let maps: Vec<u8> = parts.iter().flat_map(|part| output(&program, &["map"], part)).collect();
    let whole = parts.concat();
    let expected = counts(&output(Path::new("wc"), &[], &whole));
    assert_eq!(expected, [1, 3, whole.len() as u64]);
    assert_eq!(counts(&output(&program, &["reduce"], &maps)), expected);
}

#[test]
fn what_is_no_list_of_counts_is_an_error_and_not_a_wrong_number() {
    let dir = tempfile::tempdir().unwrap();
    let program = wordcount(dir.path());
    for (args, input) in [(&["reduce"][..], "1 2 3 0"), (&["reduce"], "x"), (&["count"], "")] {
        let mut child = Command::new(&program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // A program that refuses its arguments need not read.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        assert!(!output.status.success() && output.stdout.is_empty(), "{args:?} {input}");
    }
}
