//! Secrets as a tenant, a thief, an operator and a crash meet them.
#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use distos_e2e::disk::Disk;
use distos_e2e::holder::{Holder, in_this_process};
use distos_e2e::images::with_tpm;
use distos_e2e::{Node, Output, eventually, is_root, kill, signal, single_image};
use distos_schemas::secrets_capnp::{SecretKind, accounts, secrets};
use rustix::process::Signal;
use serde_json::Value;

const LONG: Duration = Duration::from_secs(30);
/// What nobody but its reader may see. Nothing else on a machine has these bytes.
const PASSWORD: &str = "Qz7-correct-horse-battery-staple-4mWx";
/// A name, which the broker may well have in memory: whoever looks there and does not find it has not looked.
const CANARY: &str = "a-name-that-stands-in-memory-Zt81";
const SECOND: &str = "Vk2-entirely-another-password-9pLr";

/// A node with an open broker and the tenants red, blue and green, and the shares that open it.
fn open() -> (Node, Vec<String>) {
    let node = Node::boot();
    let shares = ready(&node);
    (node, shares)
}

fn ready(node: &Node) -> Vec<String> {
    node.tenants(&["red", "blue", "green"]);
    let made = node.json(&["secret", "init", "--threshold", "2", "--shares", "3"]);
    let shares = made["shares"].as_array().unwrap();
    shares.iter().map(|share| share.as_str().unwrap().to_owned()).collect()
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
    needles.iter().any(|needle| bytes.windows(needle.len()).any(|w| w == needle))
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

    let mut needles: Vec<Vec<u8>> = traces(PASSWORD).into();
    // Shares neither.
    for share in &shares {
        needles.extend(traces_of_share(share));
    }
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
    let pid = node.pid_of("secrets");
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut memory = fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut needles: Vec<Vec<u8>> = traces(PASSWORD).into();
    for share in &shares {
        needles.extend(traces_of_share(share));
    }
    // Generated keys are not looked for: what the library for HPKE frees of them is not erased, and stands there for a
    // while (see `distos_delivery`). Of what is short the allocator soon writes over it.
    let (mut seen, mut canary_seen) = (0, false);
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (range, rights) = (words.next().unwrap(), words.next().unwrap());
        let (from, to) = range.split_once('-').unwrap();
        let (from, to) =
            (u64::from_str_radix(from, 16).unwrap(), u64::from_str_radix(to, 16).unwrap());
        if !rights.starts_with("rw") {
            continue;
        }
        let mut bytes = vec![0; (to - from) as usize];
        memory.seek(SeekFrom::Start(from)).unwrap();
        if memory.read_exact(&mut bytes).is_err() {
            continue;
        }
        seen += bytes.len();
        canary_seen |= contains(&bytes, &[CANARY.as_bytes().to_vec()]);
        // Which one, and no more of it: this is printed.
        let found =
            needles.iter().position(|needle| contains(&bytes, std::slice::from_ref(needle)));
        assert_eq!(found, None, "{line}");
    }
    assert!(seen > 1 << 20 && canary_seen, "the memory was not seen: {seen} bytes");
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
    ready(&node);
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
