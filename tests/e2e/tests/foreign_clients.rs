//! Clients in other languages: the examples of docs/foreign.md, as they stand there, on a real node
//! (C1, C2, C4). Whoever writes a client from the schemas and the book starts from these.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use distos_e2e::watch::Watched;
use distos_e2e::{Node, Output, repository, run};

const PAGE: usize = 65536;
/// What a client may take from its start to its end, however slow the machine.
const LONG: Duration = Duration::from_secs(60);

/// An example of the book.
#[derive(Clone, Copy)]
enum Example {
    Python,
    Cpp,
}

impl Example {
    /// The program, without arguments.
    fn command(self) -> Command {
        match self {
            Example::Python => {
                let mut command = python();
                command.arg(examples().join("python/client.py"));
                command
            }
            Example::Cpp => Command::new(built_client()),
        }
    }

    /// Starts it with Red's capability file. It goes on after its "waiting:" line when a line is
    /// written to the pipe that is returned.
    fn start(self, node: &Node, args: &[&str]) -> (Watched, std::io::PipeWriter) {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut command = self.command();
        command.args(args).current_dir(node.work());
        (Watched::spawn_reading(command, Stdio::from(reader)), writer)
    }
}

fn examples() -> PathBuf {
    repository().join("docs/examples")
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|m| m.modified()).ok()
}

/// Python with what the example needs, and nothing that this machine happens to have besides.
fn python() -> Command {
    let environment = repository().join("target/foreign/python");
    let wanted = fs::read(examples().join("python/requirements.txt")).unwrap();
    assert!(
        fs::read(environment.join("installed.txt")).is_ok_and(|installed| installed == wanted),
        "{} lacks what docs/examples/python/requirements.txt lists: run `make foreign` first",
        environment.display()
    );
    let mut command = Command::new(environment.join("bin/python"));
    command.env_remove("PYTHONPATH").env_remove("PYTHONHOME").env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// The C++ example, built from what stands in the book.
fn built_client() -> PathBuf {
    let binary = repository().join("target/foreign/cpp/client");
    let built = modified(&binary);
    let sources =
        ["docs/examples/cpp/client.cpp", "schemas/capability.capnp", "schemas/memory.capnp"];
    for source in sources.map(|source| repository().join(source)) {
        assert!(
            built.is_some() && built >= modified(&source),
            "{} is not there, or older than {}: run `make foreign` first",
            binary.display(),
            source.display()
        );
    }
    binary
}

/// Lets the client run until it waits for the revocation.
fn until_it_waits(client: &mut Watched) {
    let mut waited = Duration::ZERO;
    while !client.text().contains("\nwaiting: ") {
        const STEP: Duration = Duration::from_millis(50);
        assert!(waited < LONG, "it does not come to its end:\n{}", client.text());
        assert!(client.run_for(STEP), "it ended before it waited:\n{}", client.text());
        waited += STEP;
    }
}

fn press_enter(mut pipe: std::io::PipeWriter) {
    // A client that has ended does not read, and its end is looked at next.
    let _ = pipe.write_all(b"\n");
}

/// What a client printed behind the line that begins with `start`.
fn line_after<'t>(text: &'t str, start: &str) -> &'t str {
    let line = text.lines().find_map(|line| line.strip_prefix(start));
    line.unwrap_or_else(|| panic!("no line begins with {start:?}:\n{text}"))
}

fn assert_all_was_as_expected(output: &Output) {
    let text = output.text();
    assert_eq!(output.code, 0, "{}\n{text}", output.stderr);
    let denied = "denied: this capability lacks the right to";
    for (line, says) in [
        ("✓ write through it: ", format!("{denied} write")),
        ("✓ read page 2 through it: ", format!("{denied} read bytes 131072..131172")),
        ("✓ attenuate it to more: ", format!("{denied} write")),
        ("✓ read page 1 through the attenuated one: ", "revoked: ".to_owned()),
        ("✓ read through the one it was made from: ", "revoked: ".to_owned()),
        ("✓ restore it again: ", "revoked: ".to_owned()),
    ] {
        let rest = line_after(&text, line);
        assert!(rest.starts_with(&says), "{line}{rest}");
    }
    assert!(text.ends_with("everything was as expected\n"), "{text}");
}

/// The beginning of a region's hash, of its bytes as the command line reads them.
fn region_hash(node: &Node, name: &str) -> String {
    let content = node.ok(&["region", "get", name, "--as", "red.cap"]).stdout;
    let mut hasher = blake3::Hasher::new();
    for page in content.chunks(PAGE) {
        hasher.update(blake3::hash(page).as_bytes());
    }
    hasher.finalize().to_hex()[..16].to_owned()
}

fn works_until_red_revokes(example: Example) {
    let node = Node::boot();
    node.tenants(&["red"]);
    let (mut client, enter) = example.start(&node, &["red.cap", "--name", "r", "--out", "r.cap"]);
    until_it_waits(&mut client);
    // What it says about its region is so, seen from outside: others read what it wrote, and the
    // capability file that it wrote is one.
    let told = client.text();
    let told = line_after(&told, "✓ the node's hash of the region is the one computed here: ");
    assert_eq!(told.trim_end_matches('…'), region_hash(&node, "r"));
    let page = node.ok(&["region", "get", "--cap", "r.cap", "--as", "red.cap", "--len", "1"]);
    assert_eq!(page.stdout.len(), 1);

    node.ok(&["cap", "revoke", "r.cap", "--as", "red.cap"]);
    press_enter(enter);
    assert_all_was_as_expected(&client.finish(LONG));
    let left = node.json(&["region", "list", "--as", "red.cap"]);
    assert_eq!(left["regions"], serde_json::json!([]), "it erases what it made");
}

/// An example that always ends well would show nothing: neither a node that does not revoke, nor
/// one that lets in a thief, gets past it.
fn says_what_is_not_as_expected(example: Example) {
    let node = Node::boot();
    node.tenants(&["red", "blue"]);
    let (mut client, enter) = example.start(&node, &["red.cap", "--out", "r.cap"]);
    until_it_waits(&mut client);
    press_enter(enter);
    let output = client.finish(LONG);
    assert_eq!(output.code, 1, "nobody revoked:\n{}", output.text());
    assert!(output.stderr.contains("expected revoked, and it was allowed"), "{}", output.stderr);

    let stolen = example.start(&node, &["red.cap", "--key", "blue.key"]).0.finish(LONG);
    assert_eq!(stolen.code, 1, "{}", stolen.text());
    assert!(stolen.stderr.contains("unauthenticated: "), "{}", stolen.stderr);

    let text = fs::read_to_string(node.file("red.cap")).unwrap();
    fs::write(node.file("red.cap"), text.replacen("[queue]", "[quene]", 1)).unwrap();
    let damaged = example.start(&node, &["red.cap"]).0.finish(LONG);
    assert_eq!(damaged.code, 1, "{}", damaged.text());
    assert!(damaged.stderr.contains("its check does not match"), "{}", damaged.stderr);
}

#[test]
fn a_client_in_python_does_what_red_may_and_is_refused_after_red_revokes() {
    works_until_red_revokes(Example::Python);
}

#[test]
fn a_client_in_cpp_does_what_red_may_and_is_refused_after_red_revokes() {
    works_until_red_revokes(Example::Cpp);
}

#[test]
fn a_client_in_python_tells_when_a_refusal_does_not_come_or_comes_for_another_reason() {
    says_what_is_not_as_expected(Example::Python);
}

#[test]
fn a_client_in_cpp_tells_when_a_refusal_does_not_come_or_comes_for_another_reason() {
    says_what_is_not_as_expected(Example::Cpp);
}

#[test]
fn whoever_starts_an_example_wrongly_is_told_how_to() {
    for example in [Example::Python, Example::Cpp] {
        let mut help = example.command();
        help.arg("--help");
        let help = run(help, b"", LONG);
        assert_eq!(help.code, 0, "{}", help.stderr);
        for word in ["CAP", "--key", "--sockets", "--name", "--out", "exit"] {
            assert!(help.text().contains(word), "{word} is missing:\n{}", help.text());
        }
        let bare = run(example.command(), b"", LONG);
        assert!(bare.code != 0 && bare.stderr.contains("CAP"), "{}", bare.stderr);
    }
}

/// Every schema of the repository.
fn schemas() -> Vec<PathBuf> {
    let listing = fs::read_dir(repository().join("schemas")).unwrap();
    let paths = listing.map(|entry| entry.unwrap().path());
    let mut schemas: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|e| e == "capnp")).collect();
    schemas.sort();
    assert!(schemas.len() > 5, "{schemas:?}");
    schemas
}

#[test]
fn every_schema_can_be_used_from_python() {
    let mut command = python();
    command.arg("-c").arg("import sys, capnp\nfor path in sys.argv[1:]: capnp.load(path)");
    command.args(schemas());
    let output = run(command, b"", LONG);
    assert_eq!(output.code, 0, "{}", output.stderr);
}

#[test]
fn all_schemas_together_can_be_used_from_one_program_in_cpp() {
    let directory = tempfile::tempdir().unwrap();
    let mut prefix = std::ffi::OsString::from("--src-prefix=");
    prefix.push(repository().join("schemas"));
    let mut out = std::ffi::OsString::from("-oc++:");
    out.push(directory.path());
    let mut compile = Command::new("capnp");
    compile.arg("compile").arg(prefix).arg(out).args(schemas());
    let output = run(compile, b"", LONG);
    assert_eq!(output.code, 0, "{}", output.stderr);

    let include = |path: &PathBuf| {
        format!("#include \"{}.h\"\n", path.file_name().unwrap().to_str().unwrap())
    };
    let program: String = schemas().iter().map(include).collect();
    let mut check = Command::new("c++");
    check.args(["-std=c++17", "-fsyntax-only", "-x", "c++", "-I"]).arg(directory.path()).arg("-");
    let output = run(check, program.as_bytes(), LONG);
    assert_eq!(output.code, 0, "libcapnp-dev: run `make setup` first\n{}", output.stderr);
}
