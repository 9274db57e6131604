//! What the conformance tests share: where the repository is, which files it has, and how to read
//! Rust text without its comments, strings or tests. The tests themselves are in `tests/`.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::Command;

/// The repository's root.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).expect("this crate lies two folders below the root").to_owned()
}

/// Every file that is, or would be, committed: paths relative to the root, in order.
pub fn files() -> Vec<PathBuf> {
    let root = root();
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"])
        .current_dir(&root)
        .output();
    let mut files: Vec<PathBuf> = match listed {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout)
            .split_terminator('\0')
            .map(PathBuf::from)
            .filter(|path| root.join(path).is_file())
            .collect(),
        // A source archive without git.
        _ => {
            let mut found = Vec::new();
            walk(&root, Path::new(""), &mut found);
            found
        }
    };
    files.sort();
    files
}

fn walk(root: &Path, folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(root.join(folder)) else { return };
    for entry in entries.flatten() {
        let path = folder.join(entry.file_name());
        let is_ours = !["target", ".git", ".distos"].iter().any(|skip| path == Path::new(skip));
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && is_ours => walk(root, &path, found),
            Ok(kind) if kind.is_file() => found.push(path),
            _ => {}
        }
    }
}

/// The files below `folder` whose names end in `.extension`.
pub fn files_in(folder: &str, extension: &str) -> Vec<PathBuf> {
    let is_wanted = |path: &PathBuf| {
        path.starts_with(folder) && path.extension().is_some_and(|e| e == extension)
    };
    files().into_iter().filter(is_wanted).collect()
}

/// The text of a file of the repository; empty if it cannot be read as text.
pub fn read(path: &Path) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_default()
}

/// Rust source without comments, and with every string and character literal empty. Lines stay
/// where they are.
pub fn code_only(source: &str) -> String {
    let mut code = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let skipped = match first {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => block_comment(rest),
            '"' => string(rest, 1),
            'r' | 'b' | 'c' if !code.ends_with(is_word) => raw_or_byte_string(rest),
            '\'' => character(rest),
            _ => 0,
        };
        let taken = if skipped == 0 { first.len_utf8() } else { skipped };
        if skipped == 0 {
            code.push(first);
        } else {
            code.extend(rest[..taken].chars().filter(|c| *c == '\n'));
        }
        rest = &rest[taken..];
    }
    code
}

/// Whether a character belongs to an identifier.
pub fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        if text[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// The length of a string literal whose content starts at `start`.
fn string(text: &str, start: usize) -> usize {
    let mut escaped = false;
    for (at, c) in text[start..].char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return start + at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The length of a literal such as `b"…"` or `r#"…"#`; 0 if the text is an identifier.
fn raw_or_byte_string(text: &str) -> usize {
    let prefix = text.len() - text.trim_start_matches(['r', 'b', 'c']).len();
    let hashes = text[prefix..].len() - text[prefix..].trim_start_matches('#').len();
    let start = prefix + hashes + 1;
    if prefix > 2 || !text[prefix + hashes..].starts_with('"') {
        return 0;
    }
    if !text[..prefix].contains('r') {
        return if hashes == 0 { string(text, start) } else { 0 };
    }
    let end = format!("\"{}", "#".repeat(hashes));
    text[start..].find(&end).map_or(text.len(), |at| start + at + end.len())
}

/// The length of a character literal; 0 if the quote starts a lifetime.
fn character(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match chars.next() {
        Some((_, '\\')) => {
            chars.next();
            text[2..]
                .char_indices()
                .skip(1)
                .find(|(_, c)| *c == '\'')
                .map_or(0, |(at, _)| 2 + at + 1)
        }
        Some(_) => match chars.next() {
            Some((at, '\'')) => at + 1,
            _ => 0,
        },
        None => 0,
    }
}

/// Source without its tests: without the items that `#[cfg(test)]` marks. Relies on rustfmt's
/// layout, where an item ends at the indentation at which it began.
pub fn without_tests(source: &str) -> String {
    let mut kept = String::new();
    let mut lines = source.lines();
    while let Some(line) = lines.next() {
        if line.trim() != "#[cfg(test)]" {
            kept.push_str(line);
            kept.push('\n');
            continue;
        }
        let indent = &line[..line.len() - line.trim_start().len()];
        let end = format!("{indent}}}");
        for line in lines.by_ref() {
            let is_item =
                line.starts_with(indent) && !line[indent.len()..].starts_with([' ', '#', '/']);
            if line == end || (is_item && line.ends_with([';', '}'])) {
                break;
            }
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_in_comments_and_strings_are_no_code() {
        let source = r##"
let a = "unsafe \" unsafe"; // unsafe
let b = r#"unsafe " unsafe"#; /* unsafe /* unsafe */ unsafe */ let c = b"unsafe";
let d = '"'; let e: &'static str = "x"; let f = '\''; let g = '\u{1F600}'; let bar = 1;
unsafe {}
"##;
        let code = code_only(source);
        assert_eq!(code.matches("unsafe").count(), 1, "{code}");
        assert_eq!(code.lines().count(), source.lines().count());
        assert!(code.contains("&'static str") && code.contains("let bar"));
    }

    #[test]
    fn tests_are_not_counted_and_everything_else_is() {
        let source = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {\n    }\n}\nfn c() {}\n\
                      #[cfg(test)]\nmod other;\nimpl X {\n    #[cfg(test)]\n    fn d() {\n        1\n    }\n    fn e() {}\n}\n";
        assert_eq!(without_tests(source), "fn a() {}\nfn c() {}\nimpl X {\n    fn e() {}\n}\n");
    }
}
