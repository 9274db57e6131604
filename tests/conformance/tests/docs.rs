//! Documentation that a reader can rely on: every promise names a test that exists, every folder
//! and every method is explained, and no link is dead.
#![allow(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it should be"
)]
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use distos_conformance::{files, files_in, read, root};

const PROMISES: [&str; 19] = [
    "C1", "C2", "C3", "C4", "A1", "A2", "A3", "L1", "L2", "M1", "M2", "M3", "S1", "S2", "G1", "N1",
    "N2", "N3", "X1",
];

/// The targets of Markdown links, `[text](target)`, outside code blocks.
fn links(text: &str) -> Vec<String> {
    let mut in_code = false;
    let mut found = Vec::new();
    for line in text.lines() {
        in_code ^= line.trim_start().starts_with("```");
        let mut rest = line;
        while let (false, Some(at)) = (in_code, rest.find("](")) {
            rest = &rest[at + 2..];
            let Some(end) = rest.find(')') else { break };
            found.push(rest[..end].to_owned());
            rest = &rest[end..];
        }
    }
    found
}

/// Why a link in a file of `folder` is dead, if it is.
fn dead(folder: &Path, link: &str) -> Option<String> {
    if link.contains("://") || link.starts_with("mailto:") || link.starts_with('#') {
        return None;
    }
    let (path, fragment) = link.split_once('#').unwrap_or((link, ""));
    let path = folder.join(path);
    let full = root().join(&path);
    if !full.exists() {
        return Some(format!("{link}: there is no such file"));
    }
    let is_rust = path.extension().is_some_and(|e| e == "rs");
    let is_model = path.extension().is_some_and(|e| e == "tla");
    let has = |text: &str| read(&path).contains(text);
    if is_model && !fragment.is_empty() && !has(&format!("\n{fragment} ==")) {
        // A property with an argument is one too.
        return (!has(&format!("\n{fragment}("))).then(|| format!("{link}: no such property"));
    }
    (is_rust && !fragment.is_empty() && !has(&format!("fn {fragment}(")))
        .then(|| format!("{link}: the file has no such test"))
}

#[test]
fn every_promise_links_to_a_test_that_exists_or_says_that_it_has_none() {
    let readme = read(Path::new("README.md"));
    let mut wrong = Vec::new();
    for promise in PROMISES {
        let is_row = |line: &&str| {
            let first = line.trim().trim_start_matches('|').split('|').next().unwrap_or("");
            line.trim_start().starts_with('|') && first.trim().trim_matches('*') == promise
        };
        let Some(row) = readme.lines().find(is_row) else {
            wrong.push(format!("{promise} is not in README's table"));
            continue;
        };
        let links = links(row);
        wrong.extend(links.iter().filter_map(|link| dead(Path::new(""), link)));
        let to_tests = links.iter().filter(|link| link.contains(".rs")).count();
        if to_tests == 0 && !row.contains("not yet tested") {
            wrong.push(format!("{promise} names no test and does not say \"not yet tested\""));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_new_reader_finds_every_folder_in_the_map() {
    let readme = read(Path::new("README.md"));
    let mut folders: Vec<String> = files()
        .iter()
        .filter(|path| path.components().count() > 1)
        .map(|path| path.components().next().unwrap().as_os_str().to_str().unwrap().to_owned())
        .filter(|folder| !folder.starts_with('.'))
        .collect();
    folders.dedup();
    let missing: Vec<_> = folders.iter().filter(|f| !readme.contains(&format!("`{f}/`"))).collect();
    assert!(missing.is_empty(), "README's folder map lacks (as `NAME/`): {missing:?}");
}

#[test]
fn no_link_in_the_documentation_is_dead() {
    let mut wrong = Vec::new();
    for path in files_in("", "md") {
        let folder = path.parent().unwrap();
        let found = links(&read(&path));
        wrong.extend(
            found
                .iter()
                .filter_map(|l| dead(folder, l))
                .map(|why| format!("{}: {why}", path.display())),
        );
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Where documentation in Rust code holds an example that rustdoc would run as a test.
fn examples(code: &str) -> Vec<usize> {
    let mut in_block = false;
    let mut found = Vec::new();
    for (number, line) in (1..).zip(code.lines().map(str::trim_start)) {
        let doc = line.strip_prefix("///").or_else(|| line.strip_prefix("//!"));
        let Some(language) = doc.and_then(|doc| doc.trim_start().strip_prefix("```")) else {
            continue;
        };
        in_block = !in_block;
        if in_block && !["text", "toml"].contains(&language.trim()) {
            found.push(number);
        }
    }
    found
}

/// `make test` does without `cargo test --doc`, which compiles every library once more to find no
/// test in it: examples live in `docs/examples` and in tests.
#[test]
fn no_example_is_where_no_test_runs_it() {
    let wrong: Vec<_> = files_in("", "rs")
        .into_iter()
        .map(|path| (path.clone(), examples(&read(&path))))
        .filter(|(_, lines)| !lines.is_empty())
        .collect();
    assert!(wrong.is_empty(), "examples that nobody runs (or blocks without `text`): {wrong:?}");
    assert_eq!(examples("/// ```\n/// a();\n/// ```\n//! ```text\n//! ```\n"), [1]);
}

/// Methods of interfaces that are not followed by a comment. One comment may stand below several
/// methods.
fn bare_methods(schema: &str) -> Vec<String> {
    let mut bare = Vec::new();
    let mut waiting: Vec<String> = Vec::new();
    let (mut in_interface, mut in_method) = (false, false);
    for line in schema.lines().map(str::trim) {
        let (code, comment) =
            line.split_once('#').map_or((line, false), |(code, _)| (code.trim(), true));
        if code.starts_with("interface ") {
            in_interface = true;
        } else if in_interface && code == "}" {
            bare.append(&mut waiting);
            in_interface = false;
        } else if in_interface && !in_method && code.contains('@') {
            waiting.push(code.split('@').next().unwrap_or("").trim().to_owned());
            in_method = true;
        } else if in_interface && code.is_empty() && !comment && !in_method {
            bare.append(&mut waiting);
        }
        in_method &= !code.ends_with(';');
        if comment {
            waiting.clear();
        }
    }
    bare
}

#[test]
fn a_client_author_learns_what_every_method_needs_and_how_it_fails() {
    let undocumented: Vec<(PathBuf, Vec<String>)> = files_in("schemas", "capnp")
        .into_iter()
        .map(|path| (path.clone(), bare_methods(&read(&path))))
        .filter(|(_, methods)| !methods.is_empty())
        .collect();
    assert!(undocumented.is_empty(), "methods without a comment: {undocumented:#?}");
}

#[test]
fn a_method_without_a_comment_is_noticed() {
    let schema = "interface A {\n  a @0 () -> ();\n  b @1 (x :Int8,\n    y :Int8) -> ();\n  # Both.\n\n  \
                  c @2 () -> ();\n\n  d @3 () -> ();  # Beside it.\n  e @4 () -> ();\n}\n";
    assert_eq!(bare_methods(schema), ["c", "e"]);
}

#[test]
fn decision_records_are_numbered_without_gaps() {
    let records: Vec<String> = files_in("docs/decisions", "md")
        .iter()
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        .filter(|name| name != "README.md")
        .collect();
    for (number, name) in (1..).zip(&records) {
        assert!(
            name.starts_with(&format!("{number:04}-")),
            "{name} is not number {number}: {records:?}"
        );
    }
}

#[test]
fn no_file_names_a_path_of_the_machine_it_was_written_on() {
    let paths = [concat!("/wo", "rk/"), concat!("/ro", "ot/")];
    let starts_path = |before: &str| {
        !before.ends_with(|c: char| {
            c.is_alphanumeric() || ['_', '-', '.', '~', '}', ')', '*'].contains(&c)
        })
    };
    let mut wrong = Vec::new();
    for file in files() {
        let text = read(&file);
        for (number, line) in (1..).zip(text.lines()) {
            let is_named =
                |path: &str| line.match_indices(path).any(|(at, _)| starts_path(&line[..at]));
            if paths.iter().any(|path| is_named(path)) {
                wrong.push(format!("{}:{number}: {}", file.display(), line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
