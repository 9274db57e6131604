//! Secrets as a tenant, a thief, an operator and a crash meet them.
#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, Read as _, Seek as _, SeekFrom};
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine as _;
use distos_e2e::cluster::{Desk, connect_to, two};
use distos_e2e::disk::Disk;
use distos_e2e::holder::{Holder, in_this_process};
use distos_e2e::images::{with_tpm, with_tpm_args};
use distos_e2e::watch::Watched;
use distos_e2e::{Node, Output, eventually, is_root, kill, signal, single_image};
use distos_schemas::attestation_capnp::attestation;
use distos_schemas::secrets_capnp::{SecretKind, accounts, secrets};
use rustix::process::Signal;
use serde_json::Value;

const LONG: Duration = Duration::from_secs(30);
/// What nobody but its reader may see. Nothing else on a machine has these bytes.
const PASSWORD: &str = "Qz7-correct-horse-battery-staple-4mWx";
/// A name, which the broker may well have in memory: whoever looks there and does not find it has not looked.
const CANARY: &str = "a-name-that-stands-in-memory-Zt81";
const SECOND: &str = "Vk2-entirely-another-password-9pLr";

/// A node of which nothing may have told a secret when its test is over: no file of its directory, and that is where its
/// logs and its audit records are.
struct Discreet {
    node: Node,
    needles: Vec<Vec<u8>>,
}

impl Discreet {
    fn of(node: Node, shares: &[String]) -> Discreet {
        Discreet { node, needles: needles(shares) }
    }
}

impl Deref for Discreet {
    type Target = Node;

    fn deref(&self) -> &Node {
        &self.node
    }
}

impl DerefMut for Discreet {
    fn deref_mut(&mut self) -> &mut Node {
        &mut self.node
    }
}

impl Drop for Discreet {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let mut found = Vec::new();
        files_with(&self.node.directory(), &self.needles, &mut found);
        assert_eq!(found, [] as [&str; 0], "a secret stands in the clear in these files");
        assert!(!contains(self.node.log().as_bytes(), &self.needles), "the log tells a secret");
        // While it serves, also as it is told.
        let told = self.node.cli(&["audit", "list", "--json"]);
        assert!(!contains(&told.stdout, &self.needles), "an audit record tells a secret");
    }
}

/// What nobody may see of a node that keeps the values of these tests: the values, the shares and the root key.
fn needles(shares: &[String]) -> Vec<Vec<u8>> {
    let mut needles: Vec<Vec<u8>> = [traces(PASSWORD), traces(SECOND)].concat();
    shares.iter().for_each(|share| needles.extend(traces_of_share(share)));
    if let [one, other, ..] = shares {
        let key = root_key(one, other);
        needles.extend([key.to_vec(), hex::encode(key).into_bytes()]);
    }
    needles
}

/// What two shares that are enough make: the line through both, at zero, in the field of AES (FIPS 197, section 4).
fn root_key(one: &str, other: &str) -> [u8; 32] {
    let [(x, a), (y, b)] = [one, other].map(|share| {
        let bytes = hex::decode(share.strip_prefix("distos-share-").unwrap()).unwrap();
        (bytes[18], bytes[19..51].to_vec())
    });
    // In a field of 256 elements, the 254th power is the inverse.
    let over_difference = (0..253).fold(x ^ y, |power, _| times(power, x ^ y));
    let (of_a, of_b) = (times(y, over_difference), times(x, over_difference));
    std::array::from_fn(|at| times(a[at], of_a) ^ times(b[at], of_b))
}

fn times(mut a: u8, mut b: u8) -> u8 {
    let mut product = 0;
    while b != 0 {
        product ^= if b & 1 == 1 { a } else { 0 };
        a = (a << 1) ^ if a & 0x80 == 0 { 0 } else { 0x1b };
        b >>= 1;
    }
    product
}

/// A node with an open broker and the tenants red, blue and green, and the shares that open it.
fn open() -> (Discreet, Vec<String>) {
    let node = Node::boot();
    let shares = ready(&node);
    (Discreet::of(node, &shares), shares)
}

/// The same, which its TPM opens as well.
fn open_by_tpm() -> (Discreet, Vec<String>) {
    let node = Node::boot_with(&with_tpm(60_000, "/usr/bin/swtpm"));
    node.tenants(&["red", "blue", "green"]);
    let init = ["secret", "init", "--tpm", "--threshold", "2", "--shares", "3"];
    let shares = shares_of(&node.json(&init));
    (Discreet::of(node, &shares), shares)
}

fn ready(node: &Node) -> Vec<String> {
    node.tenants(&["red", "blue", "green"]);
    shares_of(&node.json(&["secret", "init", "--threshold", "2", "--shares", "3"]))
}

fn shares_of(made: &Value) -> Vec<String> {
    let shares = made["shares"].as_array().unwrap();
    shares.iter().map(|share| share.as_str().unwrap().to_owned()).collect()
}

/// The broker's status, when it has come to what is waited for.
fn status_when(node: &Node, what: &str, is: impl Fn(&Value) -> bool) -> Value {
    eventually(what, LONG, || {
        let output = node.cli(&["secret", "status", "--json"]);
        let status: Option<Value> =
            (output.code == 0).then(|| serde_json::from_slice(&output.stdout).unwrap());
        status.filter(&is)
    })
}

fn unseal(node: &Node, share: &str) -> Output {
    node.cli_with(&["secret", "unseal", "-"], share.as_bytes(), LONG)
}

fn put(node: &Node, name: &str, value: &str) -> Output {
    node.cli_with(&["secret", "put", name, "-", "--as", "red.cap"], value.as_bytes(), LONG)
}

/// The secret's value on standard output.
fn get(node: &Node, which: &[&str]) -> Output {
    node.cli(&[&["secret", "get", "--out", "-"][..], which].concat())
}

fn put_delegable(node: &Node) {
    let args = ["secret", "put", "db", "-", "--as", "red.cap", "--out", "db.cap"];
    assert_eq!(node.cli_with(&args, PASSWORD.as_bytes(), LONG).code, 0);
}

/// A lease on red's secret.
fn lease(node: &Node) -> String {
    let got = node.json(&["secret", "get", "db", "--as", "red.cap", "--out", "got"]);
    got["lease"].to_string()
}

fn renew(node: &Node, lease: &str) -> Output {
    node.cli(&["secret", "renew", "db", "--lease", lease, "--as", "red.cap"])
}

/// Every file below a directory, with what of `needles` is in it.
fn files_with(directory: &Path, needles: &[Vec<u8>], found: &mut Vec<String>) -> usize {
    let mut count = 0;
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            count += files_with(&path, needles, found);
        } else if kind.is_file() {
            count += 1;
            // One that is gone meanwhile has nothing in it.
            let bytes = fs::read(&path).unwrap_or_default();
            if contains(&bytes, needles) {
                found.push(path.display().to_string());
            }
        }
    }
    count
}

fn contains(bytes: &[u8], needles: &[Vec<u8>]) -> bool {
    needles.iter().any(|needle| holds(bytes, needle))
}

/// There may be much to look through, in a build that is not optimised: what looks for the first byte is the standard
/// library's own.
fn holds(bytes: &[u8], needle: &[u8]) -> bool {
    let (first, others) = needle.split_first().unwrap();
    let mut rest = bytes;
    while rest.skip_until(*first).unwrap() > 0 {
        if rest.starts_with(others) {
            return true;
        }
    }
    false
}

#[test]
fn what_is_looked_for_is_found_wherever_it_stands() {
    for (bytes, found) in
        [("xxab", true), ("abxx", true), ("xaab", true), ("axb", false), ("", false)]
    {
        assert_eq!(holds(bytes.as_bytes(), b"ab"), found, "{bytes}");
    }
}

/// A secret as it might have slipped out: as it is, or in hexadecimal.
fn traces(secret: &str) -> [Vec<u8>; 2] {
    [secret.as_bytes().to_vec(), hex::encode(secret).into_bytes()]
}

/// The 32 bytes of a share, without what names the key.
fn traces_of_share(share: &str) -> [Vec<u8>; 2] {
    let digits = share.strip_prefix("distos-share-").unwrap();
    let bytes = hex::decode(digits).unwrap();
    [bytes[19..51].to_vec(), digits.as_bytes()[38..102].to_vec()]
}

#[test]
fn red_gets_back_what_it_keeps_and_nobody_else_can_and_no_file_log_or_process_shows_it() {
    let (node, shares) = open();
    assert_eq!(put(&node, "db/password", PASSWORD).code, 0);
    assert_eq!(put(&node, "db/password", SECOND).code, 19, "it is there already");
    assert_eq!(get(&node, &["db/password", "--as", "red.cap"]).stdout, PASSWORD.as_bytes());
    let out = node.file("password");
    let got = node.json(&["secret", "get", "db/password", "--as", "red.cap", "--out", "password"]);
    assert_eq!(fs::read(&out).unwrap(), PASSWORD.as_bytes());
    assert_eq!(fs::metadata(&out).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(got["version"], 1);
    fs::remove_file(&out).unwrap();
    // Another tenant learns not even that there is one.
    node.refused(&["secret", "get", "db/password", "--as", "blue.cap", "--out", "-"], 15);
    assert_eq!(
        node.json(&["secret", "list", "--as", "blue.cap"])["secrets"],
        serde_json::json!([])
    );
    let list = node.json(&["secret", "list", "--as", "red.cap"]);
    assert_eq!(
        (&list["secrets"][0]["name"], &list["secrets"][0]["leases"]),
        (&"db/password".into(), &2.into())
    );

    let needles = needles(&shares);
    let mut found = Vec::new();
    let count = files_with(&node.directory(), &needles, &mut found);
    assert!(count > 10, "the node's directory was not seen");
    assert_eq!(found, [] as [&str; 0], "a secret stands in the clear in these files");
    assert!(!contains(node.log().as_bytes(), &needles));
    for process in node.processes() {
        for file in ["environ", "cmdline"] {
            let bytes = fs::read(format!("/proc/{}/{file}", process.pid)).unwrap_or_default();
            assert!(!contains(&bytes, &needles), "{}: {file}", process.command);
        }
    }
    // What was done is in the audit log, by whom and to which secret, and no value.
    let audit = eventually("the audit log", LONG, || {
        let log = node.ok(&["audit", "list", "--json"]).text();
        log.contains("'db/password' version 1 read").then_some(log)
    });
    assert!(audit.contains("'db/password' put") && audit.contains("root key made"), "{audit}");
    assert!(!contains(audit.as_bytes(), &needles));
}

#[test]
fn a_secret_is_never_shown_to_a_terminal_or_written_where_others_may_write() {
    let (node, _) = open();
    assert_eq!(put(&node, "db", PASSWORD).code, 0);
    fs::create_dir(node.file("shared")).unwrap();
    fs::set_permissions(node.file("shared"), fs::Permissions::from_mode(0o777)).unwrap();
    let args = ["secret", "get", "db", "--as", "red.cap", "--out", "shared/password"];
    assert!(node.refused(&args, 16).contains("others may write"));
    assert!(!node.file("shared/password").exists());
}

#[test]
fn a_lease_on_a_value_that_could_not_be_written_is_given_back() {
    let (node, _) = open();
    assert_eq!(put(&node, "db", PASSWORD).code, 0);
    let mut command = node.command(&["secret", "get", "db", "--as", "red.cap", "--out", "-"]);
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    assert!(!command.stdout(full).status().unwrap().success());
    assert_eq!(leases(&node), 0);
}

#[test]
fn each_operator_gets_a_share_in_a_file_and_none_is_shown() {
    let node = Node::boot();
    node.tenants(&["red"]);
    let init = |files: &[&str]| {
        let files = files.iter().flat_map(|file| ["--share-to", file]);
        let args = ["secret", "init", "--threshold", "2", "--shares", "2"];
        node.cli(&args.into_iter().chain(files).collect::<Vec<_>>())
    };
    assert_eq!(init(&["a"]).code, 16, "fewer files than shares");
    assert_eq!(init(&["a", "a"]).code, 19);
    assert_eq!(init(&["a", "./a"]).code, 19, "one file by two names");
    std::os::unix::fs::symlink("elsewhere", node.file("link")).unwrap();
    assert_eq!(init(&["a", "link"]).code, 19, "a link that leads nowhere yet");
    assert!(!node.file("a").exists() && !node.file("elsewhere").exists());
    let made = init(&["a", "b"]);
    assert_eq!(made.code, 0, "{}", made.stderr);
    assert!(!made.text().contains("distos-share-") && !made.stderr.contains("distos-share-"));
    node.ok(&["secret", "seal"]);
    for file in ["a", "b"] {
        assert_eq!(fs::metadata(node.file(file)).unwrap().permissions().mode() & 0o777, 0o600);
    }
    node.ok(&["secret", "unseal", "a", "b"]);
    assert_eq!(put(&node, "db", PASSWORD).code, 0);
}

#[test]
fn the_memory_of_the_broker_holds_no_secret_that_it_has_given_out() {
    if !is_root() {
        println!("NOT TESTED: only root reads another process's memory");
        return;
    }
    let (node, shares) = open();
    assert_eq!(put(&node, CANARY, PASSWORD).code, 0);
    // Shares come in as well as go out.
    node.ok(&["secret", "seal"]);
    shares[..2].iter().for_each(|share| assert_eq!(unseal(&node, share).code, 0));
    for _ in 0..3 {
        assert_eq!(get(&node, &[CANARY, "--as", "red.cap"]).stdout, PASSWORD.as_bytes());
    }
    let mut needles: Vec<Vec<u8>> = traces(PASSWORD).into();
    for share in &shares {
        needles.extend(traces_of_share(share));
    }
    for kind in ["ed25519", "x509"] {
        node.ok(&["secret", "put", kind, "--kind", kind, "--as", "red.cap"]);
        for _ in 0..5 {
            needles.extend(traces_of_key(&get(&node, &[kind, "--as", "red.cap"]).text()));
        }
    }
    holds_none(node.pid_of("secrets"), &needles, CANARY.as_bytes());
}

/// The seed of a private key, as it is, and the part of its text that says it.
fn traces_of_key(pem: &str) -> [Vec<u8>; 2] {
    let line = pem.lines().nth(1).unwrap();
    let der = base64::engine::general_purpose::STANDARD.decode(line).unwrap();
    // Four characters are three bytes, and 16 bytes come before the seed.
    [der[16..].to_vec(), line.as_bytes()[24..].to_vec()]
}

/// Looks for what may not be there in all memory of a process that it writes to, and for a canary, which is there.
fn holds_none(pid: u32, needles: &[Vec<u8>], canary: &[u8]) {
    let (mut seen, mut canary_seen) = (0, false);
    for Mapping { line, bytes, .. } in mappings(pid) {
        seen += bytes.len();
        canary_seen |= contains(&bytes, &[canary.to_vec()]);
        // Which one, and no more of it: this is printed.
        let found =
            needles.iter().position(|needle| contains(&bytes, std::slice::from_ref(needle)));
        assert_eq!(found, None, "{line}");
    }
    assert!(seen > 1 << 20 && canary_seen, "the memory was not seen: {seen} bytes");
}

/// Memory of another process that it may write to, as Linux describes it.
struct Mapping {
    line: String,
    /// What `VmFlags` says.
    flags: String,
    bytes: Vec<u8>,
}

fn mappings(pid: u32) -> Vec<Mapping> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let mut memory = fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let (mut found, mut head) = (Vec::new(), None);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let (first, second) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        match first.split_once('-') {
            Some((from, to)) if !first.ends_with(':') => {
                let number = |text| u64::from_str_radix(text, 16).unwrap();
                head =
                    second.starts_with("rw").then(|| (line.to_owned(), number(from), number(to)));
            }
            _ if first == "VmFlags:" => {
                let Some((line_of_head, from, to)) = head.take() else { continue };
                let mut bytes = vec![0; (to - from) as usize];
                memory.seek(SeekFrom::Start(from)).unwrap();
                if memory.read_exact(&mut bytes).is_ok() {
                    let flags = format!("{} ", line.trim_end());
                    found.push(Mapping { line: line_of_head, flags, bytes });
                }
            }
            _ => {}
        }
    }
    found
}

#[test]
fn the_root_key_is_in_memory_that_is_locked_and_left_out_of_core_files_and_nowhere_else() {
    if !is_root() {
        println!("NOT TESTED: only root reads another process's memory");
        return;
    }
    let (node, shares) = open_by_tpm();
    assert_eq!(put(&node, "db", PASSWORD).code, 0);
    // As it comes from the TPM, and as it comes from shares.
    kill(node.pid_of("secrets"));
    status_when(&node, "the broker's return", |status| status["sealed"] == false);
    for by_shares in [false, true] {
        if by_shares {
            node.ok(&["secret", "seal"]);
            shares[..2].iter().for_each(|share| assert_eq!(unseal(&node, share).code, 0));
        }
        for _ in 0..3 {
            assert_eq!(get(&node, &["db", "--as", "red.cap"]).stdout, PASSWORD.as_bytes());
        }
        let (pid, key) = (node.pid_of("secrets"), vec![root_key(&shares[0], &shares[1]).to_vec()]);
        let holding: Vec<Mapping> =
            mappings(pid).into_iter().filter(|mapping| contains(&mapping.bytes, &key)).collect();
        assert!(!holding.is_empty(), "it is open, and its key was not seen");
        for Mapping { line, flags, .. } in holding {
            let protected = flags.contains(" lo ") && flags.contains(" dd ");
            assert!(protected, "by shares: {by_shares}: {line}: {flags}");
        }
    }
    if let Err(why) = is_in_no_core_file(&node, node.pid_of("secrets"), &needles(&shares)) {
        println!("NOT TESTED: {why}");
    }
}

/// Looks through a core file of the process, made as a debugger does: it leaves out what is marked to be. An error says why
/// there is none.
fn is_in_no_core_file(node: &Node, pid: u32, needles: &[Vec<u8>]) -> Result<(), String> {
    let prefix = node.file("core");
    let made = Command::new("gcore").arg("-o").arg(&prefix).arg(pid.to_string()).output();
    let made = made.map_err(|_| "there is no gcore here")?;
    let core = prefix.with_extension(pid.to_string());
    let cannot = |_| format!("gcore cannot look: {}", String::from_utf8_lossy(&made.stderr));
    let bytes = fs::read(&core).map_err(cannot)?;
    fs::remove_file(&core).unwrap();
    assert!(bytes.len() > 1 << 20, "the core file is empty");
    let found = needles.iter().position(|needle| contains(&bytes, std::slice::from_ref(needle)));
    assert_eq!(found, None, "it is in the core file");
    Ok(())
}

#[test]
fn the_tpm_opens_the_broker_after_every_start_and_not_after_an_operator_sealed_it() {
    let (node, _) = open_by_tpm();
    assert_eq!(put(&node, "db", PASSWORD).code, 0);
    for _ in 0..2 {
        kill(node.pid_of("secrets"));
        let status = status_when(&node, "the broker's return", |s| s["sealed"] == false);
        assert_eq!((&status["tpm"], &status["given"]), (&true.into(), &0.into()));
        assert_eq!(get(&node, &["db", "--as", "red.cap"]).stdout, PASSWORD.as_bytes());
    }
    node.ok(&["secret", "seal"]);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(get(&node, &["db", "--as", "red.cap"]).code, 17, "an operator sealed it");
    // Nor does a restart undo that.
    kill(node.pid_of("secrets"));
    let status = status_when(&node, "the broker's return", |s| s["why"] == "an operator sealed it");
    assert_eq!((&status["sealed"], &status["tpm"]), (&true.into(), &true.into()));
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(get(&node, &["db", "--as", "red.cap"]).code, 17, "an operator sealed it");
    // A tenant cannot have it opened.
    node.refused(&["secret", "unseal", "--tpm", "--as", "red.cap"], 10);
    node.refused(&["secret", "bind"], 17);
    node.ok(&["secret", "unseal", "--tpm"]);
    assert_eq!(get(&node, &["db", "--as", "red.cap"]).stdout, PASSWORD.as_bytes());
    kill(node.pid_of("secrets"));
    status_when(&node, "the broker's return", |status| status["sealed"] == false);
    // Its making, and each opening, is on record.
    eventually("the audit log", LONG, || {
        let log = node.ok(&["audit", "list", "--json"]).text();
        let told = ["sealed a secret of secrets", "unsealed a secret of secrets", "the TPM opened"];
        told.iter().all(|text| log.contains(text)).then_some(())
    });
}

/// Else whoever has a capability to the attestation service has the TPM open what it keeps for the broker.
#[test]
fn whoever_has_no_edge_of_the_nodes_image_has_nothing_sealed_or_opened_by_the_tpm() {
    let image = with_tpm(60_000, "/usr/bin/swtpm");
    let rights = r#"rights = ["read", "list", "attest", "admin"] }"#;
    let node = Node::boot_with(&image.replacen(
        rights,
        r#"rights = ["read", "list", "attest", "admin", "create"] }"#,
        1,
    ));
    for ending in ["cap", "key"] {
        let own = node.directory().join(format!("operator/operator.{ending}"));
        fs::copy(own, node.file(&format!("operator.{ending}"))).unwrap();
    }
    let codes: Vec<u8> = in_this_process(async {
        let operator = Holder::load(&node, "operator");
        let chain = operator.chain("attestation");
        assert!(
            chain.authority().rights.contains(distos_abi::Rights::CREATE),
            "the image gives it"
        );
        let (_connection, client) = operator.restore::<attestation::Client>(chain).await.unwrap();
        let mut seal = client.seal_request();
        seal.get().set_to(&[9; 32]);
        let mut unseal = client.unseal_request();
        unseal.get().set_to(&[9; 32]);
        unseal.get().set_blob(&[2]);
        let sealed = seal.send().promise.await.map(drop);
        let unsealed = unseal.send().promise.await.map(drop);
        [sealed, unsealed].map(|done| distos_rpc::fault_of(&done.unwrap_err()).code()).into()
    });
    assert_eq!(codes, [10, 10], "denied");
}

#[test]
fn a_node_that_booted_another_image_is_opened_by_shares_alone_until_it_is_bound_again() {
    let (mut node, shares) = open_by_tpm();
    assert_eq!(put(&node, "db", PASSWORD).code, 0);
    node.down();
    // Its TPM is reset with the node, and measures another image.
    node.write_image(&with_tpm(61_000, "/usr/bin/swtpm"));
    node.reboot();
    let status = status_when(&node, "the TPM's refusal", |s| s["why"] != "");
    assert_eq!((&status["sealed"], &status["tpm"]), (&true.into(), &true.into()), "{status}");
    assert!(status["why"].as_str().unwrap().contains("registers"), "{status}");
    let told = node.ok(&["secret", "status"]).text();
    assert!(told.contains("secret unseal") && told.contains("secret bind"), "{told}");
    assert_eq!(get(&node, &["db", "--as", "red.cap"]).code, 17);
    node.refused(&["secret", "unseal", "--tpm"], 14);
    shares[1..].iter().for_each(|share| assert_eq!(unseal(&node, share).code, 0));
    assert_eq!(get(&node, &["db", "--as", "red.cap"]).stdout, PASSWORD.as_bytes());
    node.ok(&["secret", "bind"]);
    kill(node.pid_of("secrets"));
    status_when(&node, "the broker's return", |status| status["sealed"] == false);
    assert_eq!(get(&node, &["db", "--as", "red.cap"]).stdout, PASSWORD.as_bytes());
}

/// Blue's program: says what it was given where it can be read, and goes on until it is asked to end.
const PROGRAM: &str = "cat \"$1\" > seen; env > environment; tr '\\0' '\\n' < /proc/$$/cmdline > words; \
                       trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done";

fn program(node: &Node, options: &[&str]) -> Watched {
    let words = ["--as", "red.cap", "--", "sh", "-c", PROGRAM, "sh", "{db}"];
    let args = [&["secret", "exec", "db"][..], options, &words].concat();
    let mut running = Watched::spawn(node.command(&args));
    eventually("the program", LONG, || {
        assert!(running.run_for(Duration::from_millis(20)), "{}", running.complaints());
        running.text().contains("ready").then_some(())
    });
    running
}

fn leases(node: &Node) -> u64 {
    node.json(&["secret", "list", "--as", "red.cap"])["secrets"][0]["leases"].as_u64().unwrap()
}

#[test]
fn a_program_gets_a_secret_in_a_descriptor_and_its_lease_lasts_as_long_as_it_runs() {
    let (node, _) = open();
    let args = ["secret", "put", "db", "-", "--lease", "3s", "--as", "red.cap"];
    assert_eq!(node.cli_with(&args, PASSWORD.as_bytes(), LONG).code, 0);
    let running = program(&node, &[]);
    let work = node.work();
    assert_eq!(fs::read(work.join("seen")).unwrap(), PASSWORD.as_bytes());
    for file in ["environment", "words"] {
        let text = fs::read(work.join(file)).unwrap();
        assert!(text.len() > 10 && !contains(&text, &traces(PASSWORD)), "{file}");
    }
    assert!(fs::read_to_string(work.join("words")).unwrap().contains("/proc/self/fd/"));
    fs::remove_file(work.join("seen")).unwrap();
    // Longer than the lease: it is renewed.
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(leases(&node), 1);
    running.signal(Signal::TERM);
    let ended = running.finish(LONG);
    assert_eq!(ended.code, 7, "as the program ended: {}", ended.stderr);
    assert_eq!(leases(&node), 0, "it was given back");
    // One that is not told where its secret is would run without it.
    let without = ["secret", "exec", "db", "--as", "red.cap", "--", "true"];
    assert!(node.refused(&without, 16).contains("{db}"));
    assert_eq!(leases(&node), 0);
}

#[test]
fn a_program_is_asked_to_end_when_its_lease_is_ended() {
    let (node, _) = open();
    let args = ["secret", "put", "db", "-", "--lease", "4s", "--as", "red.cap"];
    assert_eq!(node.cli_with(&args, PASSWORD.as_bytes(), LONG).code, 0);
    let running = program(&node, &["--for", "4s"]);
    fs::remove_file(node.work().join("seen")).unwrap();
    node.ok(&["secret", "revoke", "db", "--leases", "--as", "red.cap"]);
    let ended = running.finish(LONG);
    assert_eq!(ended.code, 11, "{}", ended.stderr);
    assert!(ended.stderr.contains("asked to end"), "{}", ended.stderr);
}

/// A program of red's: says what is in the file `db` of its private directory, each byte one more than it is, and waits for so
/// many seconds before it ends; or that there is none.
fn reading_program(wait_s: u64) -> Vec<u8> {
    let wait_ns = wait_s * 1_000_000_000;
    let text = format!(
        r#"(module
        (import "wasi_snapshot_preview1" "path_open" (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (data (i32.const 32) "db")
        (data (i32.const 40) "none")
        (func $print (param $at i32) (param $len i32)
          (i32.store (i32.const 0) (local.get $at))
          (i32.store (i32.const 4) (local.get $len))
          (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))
        (func (export "_start") (local $at i32)
          (if (call $open (i32.const 3) (i32.const 0) (i32.const 32) (i32.const 2) (i32.const 0)
                          (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 16))
            (then (call $print (i32.const 40) (i32.const 4)) return))
          (i32.store (i32.const 0) (i32.const 4096))
          (i32.store (i32.const 4) (i32.const 1024))
          (if (call $read (i32.load (i32.const 16)) (i32.const 0) (i32.const 1) (i32.const 8))
            (then unreachable))
          (local.set $at (i32.const 4096))
          (loop $again
            (i32.store8 (local.get $at) (i32.add (i32.load8_u (local.get $at)) (i32.const 1)))
            (local.set $at (i32.add (local.get $at) (i32.const 1)))
            (br_if $again (i32.lt_u (local.get $at) (i32.add (i32.const 4096) (i32.load (i32.const 8))))))
          (call $print (i32.const 4096) (i32.load (i32.const 8)))
          (i32.store (i32.const 144) (i32.const 1))
          (i64.store (i32.const 152) (i64.const {wait_ns}))
          (drop (call $poll (i32.const 128) (i32.const 256) (i32.const 1) (i32.const 12)))))"#
    );
    wat::parse_str(text).unwrap()
}

/// As that program says it.
fn said(secret: &str) -> String {
    secret.bytes().map(|byte| char::from(byte + 1)).collect()
}

/// Input for programs, of so many pages, and programs that wait for so long.
fn programs(node: &Node, pages: usize, waits: &[u64]) {
    fs::write(node.file("input"), vec![b'x'; pages << 16]).unwrap();
    for tenant in ["red.cap", "blue.cap"] {
        node.ok(&["region", "put", "input", "input", "--as", tenant]);
    }
    for wait_s in waits {
        fs::write(node.file(&format!("read{wait_s}.wasm")), reading_program(*wait_s)).unwrap();
    }
}

#[test]
fn each_task_of_a_program_finds_reds_secret_as_a_file_of_its_own_and_it_stands_nowhere_else() {
    let (node, _) = open();
    // What is looked for stands in its middle: whoever reuses what was freed writes over its beginning.
    let (before, after) = ("x".repeat(512), "y".repeat(512 - PASSWORD.len()));
    let long = format!("{before}{PASSWORD}{after}");
    assert_eq!(put(&node, "db/password", &long).code, 0);
    assert_eq!(put(&node, "other", SECOND).code, 0);
    programs(&node, 3, &[0]);
    let run = ["run", "read0.wasm", "--input", "input", "--pages-per-task", "1"];
    let with = |more: &[&str]| node.cli(&[&run[..], more].concat());
    let given = with(&["--secret", "db/password=db", "--as", "red.cap"]);
    assert_eq!((given.code, given.text()), (0, said(&long).repeat(3)), "{}", given.stderr);
    // A job has what it was given, and no more; another tenant's has nothing.
    assert_eq!(with(&["--as", "red.cap"]).text(), "none".repeat(3));
    assert_eq!(with(&["--secret", "other", "--as", "red.cap"]).text(), "none".repeat(3));
    let both = ["--secret", "other=db", "--secret", "db/password", "--as", "red.cap"];
    assert_eq!(with(&both).text(), said(SECOND).repeat(3));
    assert_eq!(with(&["--secret", "db/password=db", "--as", "blue.cap"]).code, 15);
    let twice = ["--secret", "other", "--secret", "db/password=other", "--as", "red.cap"];
    assert_eq!(with(&twice).code, 16, "two files of one name");
    assert_eq!(with(&["--secret", "other=../db", "--as", "red.cap"]).code, 16);
    // Each task had a lease of its own, and has given it back.
    eventually("the end of all leases", LONG, || {
        let list = node.json(&["secret", "list", "--as", "red.cap"]);
        list["secrets"].as_array().unwrap().iter().all(|one| one["leases"] == 0).then_some(())
    });
    eventually("the audit log", LONG, || {
        let log = node.ok(&["audit", "list", "--json"]).text();
        (log.matches("'db/password' version 1 read").count() == 6).then_some(())
    });
    for process in node.processes() {
        for file in ["environ", "cmdline"] {
            let bytes = fs::read(format!("/proc/{}/{file}", process.pid)).unwrap_or_default();
            assert!(!contains(&bytes, &traces(PASSWORD)), "{}: {file}", process.command);
        }
    }
    if is_root() {
        // No task runs any more. What programs call stands in their executor's memory.
        holds_none(node.pid_of("executor/red"), &traces(PASSWORD), b"wasi_snapshot_preview1");
    }
}

/// What the tenant's page promises of an executor's locked memory: or whoever goes by it has jobs that end for want of it.
#[test]
fn two_tasks_at_a_time_have_five_secrets_of_4_kib_each_and_of_more_it_is_told() {
    let (node, _) = open();
    let names: Vec<String> = (0..12).map(|n| format!("long/{n}")).collect();
    for name in &names {
        assert_eq!(put(&node, name, &"z".repeat(4096)).code, 0);
    }
    assert_eq!(put(&node, "db", PASSWORD).code, 0);
    programs(&node, 2, &[5]);
    let run = |secrets: &[String]| {
        let mut args = vec!["run", "read5.wasm", "--input", "input", "--pages-per-task", "1"];
        args.extend(["--secret", "db", "--as", "red.cap"]);
        secrets.iter().for_each(|name| args.extend(["--secret", name]));
        Watched::spawn(node.command(&args))
    };
    let fits = || {
        let running = run(&names[..4]);
        eventually("two tasks at work", LONG, || (leases(&node) == 2).then_some(()));
        let ended = running.finish(LONG);
        assert_eq!((ended.code, ended.text()), (0, said(PASSWORD).repeat(2)), "{}", ended.stderr);
    };
    fits();
    let refused = run(&names).finish(LONG);
    assert_eq!(refused.code, 17, "{}", refused.stderr);
    // That there was no room leaves nothing behind.
    fits();
}

#[test]
fn a_task_keeps_its_lease_while_it_runs_and_ends_with_it() {
    let (node, _) = open();
    let args = ["secret", "put", "db", "-", "--lease", "4s", "--as", "red.cap"];
    assert_eq!(node.cli_with(&args, PASSWORD.as_bytes(), LONG).code, 0);
    programs(&node, 1, &[10, 50]);
    let run = |program| {
        let args = ["run", program, "--input", "input", "--secret", "db", "--as", "red.cap"];
        Watched::spawn(node.command(&args))
    };
    // Longer than a lease.
    let ended = run("read10.wasm").finish(LONG);
    assert_eq!((ended.code, ended.text()), (0, said(PASSWORD)), "{}", ended.stderr);
    let has_one = || {
        eventually("the task's lease", LONG, || (leases(&node) == 1).then_some(()));
    };
    let has_none = || {
        eventually("the end of all leases", LONG, || (leases(&node) == 0).then_some(()));
    };
    for end in [&["--leases"][..], &[]] {
        // That of another run says nothing of this one.
        has_none();
        let running = run("read50.wasm");
        has_one();
        node.ok(&[&["secret", "revoke", "db", "--as", "red.cap"][..], end].concat());
        // It waits for much longer.
        let ended = running.finish(Duration::from_secs(20));
        assert_eq!(ended.code, 11, "{}", ended.stderr);
    }
    // Whoever gave it is killed, and gives nothing back.
    assert_eq!(put(&node, "db", PASSWORD).code, 0);
    has_none();
    let running = run("read50.wasm");
    has_one();
    running.signal(Signal::KILL);
    running.finish(LONG);
    has_none();
}

#[test]
fn a_holder_elsewhere_in_the_cluster_reads_a_secret_that_is_sealed_to_its_key() {
    let desk = Desk::set_up();
    let (home, _other) = two(&desk, 3600);
    let shares = ready(&home.node);
    desk.agent(&home.node, "red");
    home.node.ok(&["peers", "add", "tenant/red"]);
    let far = desk.text("far");
    let connected = connect_to(&desk, &home, ("secrets", "secrets"), "red", "far");
    fs::write(desk.path("password"), PASSWORD).unwrap();
    let file = desk.text("password");
    desk.ok(&["secret", "put", "db", &file, "--as", "red.cap", "--node", &far]);
    let get = ["secret", "get", "db", "--out", "-", "--as", "red.cap", "--node", &far];
    assert_eq!(desk.ok(&get), PASSWORD);
    // The same at home, by the same capability, and what needs evidence of this node is not given out elsewhere.
    let at_home = home.node.cli(&["secret", "get", "db", "--out", "-", "--as", "red.cap"]);
    assert_eq!(at_home.stdout, PASSWORD.as_bytes());
    let attested = ["secret", "put", "here", &file, "--attested", "--as", "red.cap"];
    desk.ok(&[&attested[..], &["--node", &far]].concat());
    let away =
        desk.run(&["secret", "get", "here", "--out", "-", "--as", "red.cap", "--node", &far]);
    assert_eq!(away.code, 14, "{}", away.stderr);
    drop(connected);
    drop(Discreet::of(home.node, &shares));
}

#[test]
fn a_stolen_capability_to_a_secret_is_useless_and_a_delegated_one_ends_when_red_says_so() {
    let (node, _) = open();
    put_delegable(&node);
    // Green has red's file and its own key.
    fs::copy(node.file("db.cap"), node.file("stolen.cap")).unwrap();
    fs::copy(node.file("green.key"), node.file("stolen.key")).unwrap();
    assert_eq!(get(&node, &["--cap", "db.cap", "--as", "green.cap"]).code, 22);
    assert_eq!(get(&node, &["--cap", "stolen.cap", "--as", "stolen.cap"]).code, 22);
    // Blue is lent this one secret, to be read.
    let lend = ["cap", "delegate", "db.cap", "--as", "red.cap", "--to", "blue.pub"];
    node.ok(&[&lend[..], &["--rights", "read", "-o", "lent.cap"]].concat());
    assert_eq!(get(&node, &["--cap", "lent.cap", "--as", "blue.cap"]).stdout, PASSWORD.as_bytes());
    let blues = ["secret", "get", "--cap", "lent.cap", "--as", "blue.cap", "--out", "blues"];
    let lease = node.json(&blues)["lease"].to_string();
    let rotate = ["secret", "rotate", "--cap", "lent.cap", "--as", "blue.cap"];
    node.refused(&rotate, 10);
    node.refused(&["secret", "revoke", "--cap", "lent.cap", "--as", "blue.cap"], 10);
    // A lease is its holder's alone, though red has more rights.
    assert_eq!(renew(&node, &lease).code, 11);
    node.ok(&["secret", "renew", "--cap", "lent.cap", "--as", "blue.cap", "--lease", &lease]);
    node.ok(&["cap", "revoke", "lent.cap", "--as", "red.cap"]);
    assert_eq!(get(&node, &["--cap", "lent.cap", "--as", "blue.cap"]).code, 11);
}

#[test]
fn a_rotation_overlaps_for_as_long_as_was_said() {
    let (node, _) = open();
    assert_eq!(put(&node, "db", PASSWORD).code, 0);
    lease(&node);
    let rotate = ["secret", "rotate", "db", "--value", "-", "--overlap", "3s", "--as", "red.cap"];
    assert_eq!(node.cli_with(&rotate, SECOND.as_bytes(), LONG).code, 0);
    assert_eq!(get(&node, &["db", "--as", "red.cap"]).stdout, SECOND.as_bytes());
    let old = ["db", "--version", "1", "--as", "red.cap"];
    assert_eq!(get(&node, &old).stdout, PASSWORD.as_bytes());
    let refused = eventually("the end of the overlap", LONG, || {
        let output = get(&node, &old);
        // A lease that would end while it is made has ended.
        (![0, 12].contains(&output.code)).then_some(output)
    });
    assert_eq!(refused.code, 15, "{}", refused.stderr);
    assert_eq!(get(&node, &["db", "--as", "red.cap"]).stdout, SECOND.as_bytes());
}

#[test]
fn leases_end_one_by_one_by_secret_and_by_node_and_a_dropped_secret_is_gone() {
    let (node, _) = open();
    put_delegable(&node);
    let one = lease(&node);
    assert_eq!(renew(&node, &one).code, 0);
    node.ok(&["secret", "release", "db", "--lease", &one, "--as", "red.cap"]);
    assert_eq!(renew(&node, &one).code, 11);
    let two = lease(&node);
    node.refused(&["secret", "revoke", "--of-node", &"0".repeat(64), "--as", "red.cap"], 10);
    let other = node.json(&["secret", "revoke", "--of-node", &"0".repeat(64)]);
    assert_eq!(other["leases"], 0);
    assert_eq!(renew(&node, &two).code, 0, "another node's leases");
    let id = node.json(&["status"])["node"].as_str().unwrap().to_owned();
    assert!(node.json(&["secret", "revoke", "--of-node", &id])["leases"].as_u64() >= Some(1));
    assert_eq!(renew(&node, &two).code, 11);
    assert_eq!(get(&node, &["db", "--as", "red.cap"]).code, 14, "it reads again");
    node.ok(&["secret", "revoke", "--admit", &id]);
    let three = lease(&node);
    assert_eq!(renew(&node, &three).code, 0, "made since");
    node.ok(&["secret", "revoke", "db", "--leases", "--as", "red.cap"]);
    assert_eq!(renew(&node, &three).code, 11);
    node.ok(&["secret", "revoke", "db", "--as", "red.cap"]);
    assert_eq!(get(&node, &["db", "--as", "red.cap"]).code, 15);
    assert_eq!(get(&node, &["--cap", "db.cap", "--as", "red.cap"]).code, 11);
}

#[test]
fn each_reading_of_a_dynamic_secret_is_a_key_of_its_own() {
    let (node, _) = open();
    for kind in ["ed25519", "x509"] {
        node.ok(&["secret", "put", kind, "--kind", kind, "--as", "red.cap"]);
        let read = || get(&node, &[kind, "--as", "red.cap"]).text();
        let (one, two) = (read(), read());
        assert!(one.starts_with("-----BEGIN PRIVATE KEY-----\n"), "{one}");
        assert_ne!(one, two);
        let certificates = if kind == "x509" { 2 } else { 0 };
        assert_eq!(one.matches("-----BEGIN CERTIFICATE-----").count(), certificates);
    }
}

#[test]
fn what_was_acknowledged_outlives_kill_9_and_nothing_is_given_out_until_operators_open_it() {
    let (node, shares) = open();
    put_delegable(&node);
    let leased = lease(&node);
    let ended = lease(&node);
    node.ok(&["secret", "release", "db", "--lease", &ended, "--as", "red.cap"]);
    let stop = AtomicBool::new(false);
    let acknowledged = std::thread::scope(|scope| {
        let putting = scope.spawn(|| {
            let mut names = Vec::new();
            for n in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let name = format!("s{n}");
                if put(&node, &name, &format!("{SECOND}{n}")).code == 0 {
                    names.push(name);
                }
            }
            names
        });
        std::thread::sleep(Duration::from_millis(800));
        kill(node.pid_of("secrets"));
        stop.store(true, Ordering::Relaxed);
        putting.join().unwrap()
    });
    assert!(!acknowledged.is_empty());
    let status = eventually("the broker's return", LONG, || {
        let output = node.cli(&["secret", "status", "--json"]);
        (output.code == 0).then(|| serde_json::from_slice::<Value>(&output.stdout).unwrap())
    });
    assert_eq!((&status["sealed"], &status["given"]), (&true.into(), &0.into()));
    assert_eq!(get(&node, &["db", "--as", "red.cap"]).code, 17, "it is sealed");
    assert_eq!(put(&node, "more", "x").code, 17);
    assert_eq!(renew(&node, &leased).code, 17);
    // A tenant cannot open it, and one share is too few, also when it is given twice.
    let tenants = ["secret", "unseal", "-", "--as", "red.cap"];
    assert_eq!(node.cli_with(&tenants, shares[0].as_bytes(), LONG).code, 10);
    for _ in 0..2 {
        assert!(unseal(&node, &shares[0]).text().contains("1 of the 2"));
    }
    assert_eq!(get(&node, &["db", "--as", "red.cap"]).code, 17);
    assert_eq!(unseal(&node, &shares[2][..60]).code, 16, "half a share");
    assert!(unseal(&node, &shares[2]).text().starts_with("open"));
    assert_eq!(get(&node, &["db", "--as", "red.cap"]).stdout, PASSWORD.as_bytes());
    assert_eq!(get(&node, &["--cap", "db.cap", "--as", "red.cap"]).stdout, PASSWORD.as_bytes());
    assert_eq!(renew(&node, &leased).code, 0, "a lease that was acknowledged");
    assert_eq!(renew(&node, &ended).code, 11, "what had ended came back");
    for name in acknowledged {
        let value = get(&node, &[&name, "--as", "red.cap"]).text();
        assert_eq!(value, format!("{SECOND}{}", &name[1..]));
    }
    node.ok(&["secret", "seal"]);
    assert_eq!(get(&node, &["db", "--as", "red.cap"]).code, 17);
    // Whoever makes another root key would lose what is under this one.
    node.refused(&["secret", "init"], 19);
}

#[test]
fn a_secret_that_needs_evidence_is_given_out_while_that_is_fresh_and_not_a_moment_longer() {
    let node = Node::boot_with(&with_tpm(3_000, "/usr/bin/swtpm"));
    let shares = ready(&node);
    let node = Discreet::of(node, &shares);
    let args = ["secret", "put", "db", "-", "--attested", "--as", "red.cap"];
    assert_eq!(node.cli_with(&args, PASSWORD.as_bytes(), LONG).code, 0);
    node.ok(&["attest", "now"]);
    let got = node.json(&["secret", "get", "db", "--as", "red.cap", "--out", "got"]);
    let until_ms = got["until_ms"].as_u64().unwrap();
    let now_ms = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    assert!(until_ms <= now_ms.as_millis() as u64 + 3_000, "the lease is over with the evidence");
    // It answers no more, and nobody starts another.
    let tpm = node.swtpm_pid().unwrap();
    signal(tpm, Signal::STOP);
    let refused = eventually("the end of the evidence", LONG, || {
        let output = get(&node, &["db", "--as", "red.cap"]);
        (![0, 12].contains(&output.code)).then_some(output)
    });
    signal(tpm, Signal::CONT);
    assert_eq!(refused.code, 14, "{}", refused.stderr);
    let lease = got["lease"].to_string();
    assert_ne!(renew(&node, &lease).code, 0);
}

#[test]
fn when_a_register_is_extended_behind_the_nodes_back_all_its_leases_end_and_the_tpm_opens_nothing()
{
    // Where the program's own user can enter: the directory with the checkout may be its owner's alone.
    let reachable = tempfile::tempdir().unwrap();
    fs::set_permissions(reachable.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let tpm = reachable.path().join("tpm");
    fs::copy(env!("CARGO_BIN_EXE_distos-e2e-tpm"), &tpm).unwrap();
    let node = Node::boot_with(&with_tpm_args(60_000, tpm.to_str().unwrap(), "\"{fd}\""));
    node.tenants(&["red"]);
    let init = ["secret", "init", "--tpm", "--threshold", "2", "--shares", "3"];
    let shares = shares_of(&node.json(&init));
    let node = Discreet::of(node, &shares);
    assert_eq!(put(&node, "db", PASSWORD).code, 0);
    let attested = ["secret", "put", "here", "-", "--attested", "--as", "red.cap"];
    assert_eq!(node.cli_with(&attested, SECOND.as_bytes(), LONG).code, 0);
    node.ok(&["attest", "now"]);
    let leased = lease(&node);
    assert_eq!(renew(&node, &leased).code, 0);
    let here = ["secret", "get", "here", "--as", "red.cap", "--out", "here.txt"];
    node.ok(&here);
    let place = node.directory().join("vats/swtpm");
    fs::write(place.join("extend"), "").unwrap();
    node.cli(&["attest", "now"]);
    eventually("the extended register", LONG, || place.join("extended").exists().then_some(()));
    node.cli(&["attest", "now"]);
    let refused = eventually("the end of the leases", LONG, || {
        let output = renew(&node, &leased);
        (output.code != 0).then_some(output)
    });
    assert!([11, 14].contains(&refused.code), "{}", refused.stderr);
    assert_eq!(get(&node, &["here", "--as", "red.cap"]).code, 14);
    kill(node.pid_of("secrets"));
    let status = status_when(&node, "the TPM's refusal", |status| status["why"] != "");
    assert_eq!(status["sealed"], true, "{status}");
    // Sealed, and on a node that has failed: whichever is seen first.
    let refused = get(&node, &["db", "--as", "red.cap"]);
    assert!([14, 17].contains(&refused.code), "{}", refused.stderr);
}

#[test]
fn while_the_end_of_a_lease_cannot_be_recorded_nothing_is_given_out_and_then_it_has_ended() {
    let mut node = Node::new(&single_image());
    let Some(disk) = Disk::mount(&node.directory()) else { return };
    node.reboot();
    ready(&node);
    put_delegable(&node);
    let (ended, kept) = (lease(&node), lease(&node));
    assert_eq!(renew(&node, &kept).code, 0);
    disk.fill();
    // The last block of the log has some room.
    let refused = (0..40).map(|_| get(&node, &["db", "--as", "red.cap"])).find(|o| o.code != 0);
    let refused = refused.unwrap();
    assert_eq!(refused.code, 17, "{}", refused.stderr);
    assert!(refused.stderr.contains("the disk is full"), "{}", refused.stderr);
    let release = ["secret", "release", "db", "--lease", &ended, "--as", "red.cap"];
    node.refused(&release, 17);
    assert_eq!(renew(&node, &kept).code, 17);
    let told = node.json(&["secret", "status"])["failing"].as_str().unwrap().to_owned();
    assert!(told.contains("the disk is full"), "{told}");
    disk.free();
    eventually("the broker's going on", LONG, || {
        (get(&node, &["db", "--as", "red.cap"]).stdout == PASSWORD.as_bytes()).then_some(())
    });
    assert_eq!(renew(&node, &ended).code, 11, "it ended, though that could not be recorded then");
    assert_eq!(renew(&node, &kept).code, 0);
    node.down();
}

#[test]
fn after_a_root_key_that_could_not_be_recorded_nothing_is_put_under_another_and_a_new_one_can_be_made()
 {
    let mut node = Node::new(&single_image());
    let Some(disk) = Disk::mount(&node.directory()) else { return };
    node.reboot();
    ready(&node);
    disk.fill();
    let init = ["secret", "init", "--threshold", "2", "--shares", "3", "--json"];
    // The last block of the log has some room.
    let refused = (0..60).map(|_| node.cli(&init)).find(|o| o.code != 0).unwrap();
    assert_eq!(refused.code, 17, "{}", refused.stderr);
    disk.free();
    let status = eventually("the broker's going on", LONG, || {
        let status = node.json(&["secret", "status"]);
        (status["failing"] == "").then_some(status)
    });
    assert_eq!((&status["initialised"], &status["sealed"]), (&true.into(), &true.into()));
    assert_eq!(put(&node, "db", PASSWORD).code, 17, "under a key that is named nowhere");
    let made = node.json(&["secret", "init", "--threshold", "2", "--shares", "3"]);
    assert_eq!(put(&node, "db", PASSWORD).code, 0);
    kill(node.pid_of("secrets"));
    eventually("the broker's return", LONG, || {
        (node.cli(&["secret", "status"]).code == 0).then_some(())
    });
    for share in &made["shares"].as_array().unwrap()[1..] {
        assert_eq!(unseal(&node, share.as_str().unwrap()).code, 0);
    }
    assert_eq!(get(&node, &["db", "--as", "red.cap"]).stdout, PASSWORD.as_bytes());
    assert_eq!(unseal(&node, made["shares"][0].as_str().unwrap()).code, 19, "it is open");
    node.down();
}

/// A database of red's, in memory: accounts by their names, with their passwords; and the account that it will not remove.
#[derive(Clone, Default)]
struct Database(Rc<RefCell<BTreeMap<String, String>>>, Rc<RefCell<Option<String>>>);

impl accounts::Server for Database {
    async fn create(
        self: Rc<Self>,
        params: accounts::CreateParams,
        _: accounts::CreateResults,
    ) -> Result<(), capnp::Error> {
        let params = params.get()?;
        let (name, password) =
            (params.get_name()?.to_string()?, params.get_password()?.to_string()?);
        assert!(
            self.0.borrow_mut().insert(name, password).is_none(),
            "a name that was there before"
        );
        Ok(())
    }

    async fn remove(
        self: Rc<Self>,
        params: accounts::RemoveParams,
        _: accounts::RemoveResults,
    ) -> Result<(), capnp::Error> {
        let name = params.get()?.get_name()?.to_string()?;
        if self.1.borrow().as_ref() == Some(&name) {
            return Err(capnp::Error::failed("somebody is still logged in".into()));
        }
        self.0.borrow_mut().remove(&name);
        Ok(())
    }
}

/// Runs a command while what this thread serves goes on.
async fn meanwhile(node: &Node, args: &[&str]) -> Output {
    let command = node.command(args);
    tokio::task::spawn_blocking(move || distos_e2e::run(command, &[], LONG)).await.unwrap()
}

#[test]
fn an_account_at_reds_database_is_there_for_as_long_as_its_lease_and_not_forgotten_by_a_crash() {
    let (node, shares) = open();
    let database = Database::default();
    in_this_process(async {
        let red = Holder::load(&node, "red");
        let get = ["secret", "get", "login", "--out", "-", "--as", "red.cap"];
        let mut passwords: Vec<Vec<u8>> = Vec::new();
        {
            let (_connection, client) =
                red.restore::<secrets::Client>(red.chain("secrets")).await.unwrap();
            let mut request = client.put_request();
            let mut params = request.get();
            params.set_name("login");
            params.set_kind(SecretKind::Account);
            params.set_accounts(capnp_rpc::new_client(database.clone()));
            request.send().promise.await.unwrap();
            let one = meanwhile(&node, &get).await;
            assert_eq!(one.code, 0, "{}", one.stderr);
            let one = one.text();
            let (name, password) = one.trim_end().split_once('\n').unwrap();
            assert_eq!(database.0.borrow()[name], password);
            let two = meanwhile(&node, &get).await.text();
            assert_ne!(one, two);
            assert_eq!(database.0.borrow().len(), 2);
            passwords.extend(database.0.borrow().values().flat_map(|one| traces(one)));
            // The oldest cannot be removed for a while, and keeps the other waiting no longer.
            *database.1.borrow_mut() = Some(name.to_owned());
            let end = ["secret", "revoke", "login", "--leases", "--as", "red.cap"];
            assert_eq!(meanwhile(&node, &end).await.code, 0);
            let down_to = async |left| {
                while database.0.borrow().len() > left {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::time::timeout(LONG, down_to(1)).await.unwrap();
            assert!(database.0.borrow().contains_key(name));
            *database.1.borrow_mut() = None;
            tokio::time::timeout(LONG, down_to(0)).await.unwrap();
            assert_eq!(meanwhile(&node, &get).await.code, 0);
        }
        // Red's program is gone, and with it what makes accounts; then the broker is killed.
        assert_eq!(database.0.borrow().len(), 1);
        assert_eq!(meanwhile(&node, &get).await.code, 17);
        if is_root() {
            // Nor does the connection's buffer, in which the last one stood.
            assert_eq!(put(&node, CANARY, PASSWORD).code, 0);
            holds_none(node.pid_of("secrets"), &passwords, CANARY.as_bytes());
        }
        let end = ["secret", "revoke", "login", "--leases", "--as", "red.cap"];
        assert_eq!(meanwhile(&node, &end).await.code, 0);
        let dropping = ["secret", "revoke", "login", "--as", "red.cap"];
        assert_eq!(meanwhile(&node, &dropping).await.code, 17, "an account would stay for good");
        kill(node.pid_of("secrets"));
        eventually("the broker's return", LONG, || {
            (node.cli(&["secret", "status"]).code == 0).then_some(())
        });
        shares[..2].iter().for_each(|share| assert_eq!(unseal(&node, share).code, 0));
        assert_eq!(meanwhile(&node, &get).await.code, 17);
        let (_connection, client) =
            red.restore::<secrets::Client>(red.chain("secrets")).await.unwrap();
        let mut request = client.open_request();
        request.get().set_name("login");
        let answer = request.send().promise.await.unwrap();
        let login = answer.get().unwrap().get_secret().unwrap();
        let mut request = login.attach_request();
        request.get().set_accounts(capnp_rpc::new_client(database.clone()));
        request.send().promise.await.unwrap();
        let removed = async {
            while !database.0.borrow().is_empty() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LONG, removed).await.unwrap();
        assert_eq!(meanwhile(&node, &get).await.code, 0);
    });
}
