//! An auditor finds in the log who did what by whose authority, and finds any change to it (L1).
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use distos_e2e::{Node, wordcount};
use serde_json::Value;

/// Steps 3 to 6 of the main job.
fn main_job(node: &Node) {
    node.tenants(&["red", "blue"]);
    let licenses = "/usr/share/common-licenses";
    node.ok(&["region", "put", "text", licenses, "--as", "red.cap", "--out", "text.cap"]);
    let module = wordcount();
    let run = ["run", module.to_str().unwrap(), "--input", "text", "--map", "map"];
    node.ok(&[&run[..], &["--reduce", "reduce", "--as", "red.cap"]].concat());
    let lend = ["cap", "delegate", "text.cap", "--as", "red.cap", "--to", "blue.pub"];
    let page = ["--rights", "read", "--page", "1", "--for", "1m", "-o", "page.cap"];
    node.ok(&[&lend[..], &page].concat());
    let get = ["region", "get", "--cap", "page.cap", "--as", "blue.cap", "--len", "8"];
    node.ok(&get);
    node.refused(&[&get[..], &["--offset", "0"]].concat(), 10);
    fs::write(node.file("note"), "mine").unwrap();
    node.refused(&["region", "put", "--cap", "page.cap", "note", "--as", "blue.cap"], 10);
    node.refused(&["region", "get", "--cap", "text.cap", "--as", "blue.cap"], 22);
    node.ok(&["cap", "revoke", "page.cap", "--as", "red.cap"]);
    node.refused(&get, 11);
}

struct Log(Vec<Value>);

impl Log {
    fn of(node: &Node) -> Log {
        Log(node.json(&["audit", "list"]).as_array().unwrap().clone())
    }

    /// The one entry, or the first, of this kind whose detail holds `text`.
    fn find(&self, kind: &str, text: &str) -> &Value {
        let found = self
            .0
            .iter()
            .find(|e| e["kind"] == kind && e["detail"].as_str().unwrap().contains(text));
        found.unwrap_or_else(|| panic!("no {kind} with '{text}' in {:#?}", self.0))
    }

    /// The key of whoever held the capability of an entry: its own holder, or else that of the
    /// nearest ancestor in its lineage.
    fn holder(&self, entry: &Value) -> String {
        let lineage = entry["lineage"].as_array().unwrap();
        let holders: BTreeMap<u64, &str> = self
            .0
            .iter()
            .filter(|e| e["holder"] != "")
            .map(|e| (e["cap_id"].as_u64().unwrap(), e["holder"].as_str().unwrap()))
            .collect();
        let own = entry["holder"].as_str().filter(|h| !h.is_empty());
        let above = || lineage.iter().rev().find_map(|c| holders.get(&c.as_u64()?).copied());
        own.or_else(above).unwrap_or_default().to_owned()
    }
}

#[test]
fn an_auditor_finds_every_step_of_the_main_job_with_its_holder_and_lineage() {
    let node = Node::boot();
    main_job(&node);
    let tenants = node.json(&["tenant", "list"]);
    let key = |name: &str| {
        let all = tenants.as_array().or_else(|| tenants["tenants"].as_array()).unwrap();
        let tenant = all.iter().find(|t| t["name"] == name).unwrap();
        tenant["holder"].as_str().unwrap().to_owned()
    };
    let (red, blue) = (key("red"), key("blue"));
    let log = Log::of(&node);
    for (number, entry) in log.0.iter().enumerate() {
        assert_eq!(entry["index"], number, "an entry is missing");
        let lineage = entry["lineage"].as_array().unwrap();
        let cap = &entry["cap_id"];
        assert!(lineage.last().is_none_or(|own| own == cap || lineage.contains(cap)), "{entry}");
    }
    assert!(log.find("boot", "image")["detail"].as_str().unwrap().contains("epoch 1"));
    assert!(log.find("attestation", "good")["detail"].as_str().unwrap().contains("TPM"));
    assert_eq!(log.find("tenant", "red ")["holder"], red);
    assert_eq!(log.find("tenant", "blue ")["holder"], blue);

    let mint = log.find("mint", "region 1: read+write+drop");
    assert_eq!(log.holder(mint), red);
    assert!(mint["lineage"].as_array().unwrap().len() > 1, "{mint}");

    let redeem = log.find("redeem", "region 1: read, bytes 65536..131072");
    assert_eq!(redeem["holder"], blue);
    assert!(redeem["detail"].as_str().unwrap().contains(&red), "who delegated it: {redeem}");
    let lineage = redeem["lineage"].as_array().unwrap();
    assert!(lineage.contains(&mint["cap_id"]), "it descends from red's region: {redeem}");

    for what in ["read bytes 0..8", "write"] {
        let denial = log.find("denial", &format!("lacks the right to {what}"));
        assert_eq!(log.holder(denial), blue, "{denial}");
        assert!(denial["lineage"].as_array().unwrap().contains(&redeem["cap_id"]), "{denial}");
    }
    log.find("denial", "not authenticated");
    log.find("denial", "revoked");

    let placement = log.find("placement", "evidence fresh until");
    assert_eq!(log.holder(placement), red);
    let revoke =
        log.0.iter().find(|e| e["kind"] == "revoke" && e["cap_id"] == redeem["cap_id"]).unwrap();
    assert_eq!(revoke["lineage"], redeem["lineage"]);
    assert!(revoke["index"].as_u64() > redeem["index"].as_u64());

    let verified = node.json(&["audit", "verify"]);
    assert_eq!(verified["ok"], true);
    assert!(verified["checkpoint"]["size"].as_u64().unwrap() >= log.0.len() as u64);
    let only_blue = node.json(&["audit", "list", "--tenant", "blue"]);
    assert!(only_blue.as_array().unwrap().iter().all(|e| e["tenant"] == 2));
}

#[test]
fn an_auditor_finds_the_log_whole_and_longer_after_a_crash_and_a_shutdown() {
    let mut node = Node::boot();
    main_job(&node);
    let before = Log::of(&node);
    node.crash();
    node.reboot();
    assert_eq!(node.json(&["audit", "verify"])["ok"], true);
    let after = Log::of(&node);
    assert_eq!(after.0[..before.0.len()], before.0[..], "what was in the log is in it");
    after.find("boot", "epoch 2");
    node.down();
    node.reboot();
    assert_eq!(node.json(&["audit", "verify"])["ok"], true);
    let last = Log::of(&node);
    assert_eq!(last.0[..after.0.len()], after.0[..]);
    last.find("boot", "epoch 3");
}

/// A flipped bit: in which file, at which byte, counted from the end if negative.
const FLIPS: [(&str, i64); 8] = [
    ("log-00000000000000000000.seg", 0),
    ("log-00000000000000000000.seg", 9),
    ("log-00000000000000000000.seg", 200),
    ("log-00000000000000000000.seg", -4000),
    ("head", 0),
    ("head", 60),
    ("head", -1),
    ("key", 40),
];

#[test]
fn an_auditor_is_told_where_a_bit_of_the_stored_log_was_flipped() {
    let mut node = Node::boot();
    main_job(&node);
    let before = Log::of(&node);
    node.down();
    for (file, at) in FLIPS {
        let path: PathBuf = node.directory().join("vats/audit").join(file);
        let whole = fs::read(&path).unwrap();
        let len = i64::try_from(whole.len()).unwrap();
        let at = usize::try_from(if at < 0 { len + at } else { at }).unwrap();
        let mut changed = whole.clone();
        changed[at] ^= 1;
        fs::write(&path, &changed).unwrap();
        node.reboot();
        let output = node.cli(&["audit", "verify"]);
        let said = output.stderr;
        assert_eq!(output.code, 23, "byte {at} of {file}: {said}");
        assert!(said.contains(file), "byte {at} of {file}: {said}");
        let numbers = ["entry ", " byte "].map(|word| {
            let digits = said
                .split(word)
                .nth(1)
                .map(|rest| rest.chars().take_while(char::is_ascii_digit).collect::<String>());
            digits.and_then(|d| d.parse::<usize>().ok())
        });
        let [Some(_), Some(offset)] = numbers else { panic!("no entry or byte in: {said}") };
        assert!(offset <= at, "byte {at} of {file} is said to be at {offset} or behind: {said}");
        node.down();
        assert!(fs::read(&path).unwrap() == changed, "evidence of the damage in {file} is gone");
        fs::write(&path, &whole).unwrap();
    }
    // What the shutdown itself wrote last may not have been acknowledged to the kernel, which
    // then gives it again. Whatever an auditor could have read is found.
    let path = node.directory().join("vats/audit/log-00000000000000000000.seg");
    let mut changed = fs::read(&path).unwrap();
    *changed.last_mut().unwrap() ^= 1;
    fs::write(&path, &changed).unwrap();
    node.reboot();
    let output = node.cli(&["audit", "verify"]);
    if output.code == 0 {
        assert_eq!(Log::of(&node).0[..before.0.len()], before.0[..], "entries are gone");
    } else {
        assert_eq!(output.code, 23, "{}", output.stderr);
        assert!(output.stderr.contains("log-0"), "{}", output.stderr);
    }
}

#[test]
fn an_auditor_finds_the_log_whole_when_a_flipped_bit_is_put_back() {
    let mut node = Node::boot();
    main_job(&node);
    node.down();
    let path = node.directory().join("vats/audit/head");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, [&whole[..60], &[whole[60] ^ 4], &whole[61..]].concat()).unwrap();
    node.reboot();
    node.refused(&["audit", "verify"], 23);
    node.down();
    fs::write(&path, &whole).unwrap();
    node.reboot();
    assert_eq!(node.json(&["audit", "verify"])["ok"], true);
}

#[test]
fn an_auditor_is_told_that_entries_were_cut_off() {
    let mut node = Node::boot();
    main_job(&node);
    node.down();
    let path = node.directory().join("vats/audit/log-00000000000000000000.seg");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 2000]).unwrap();
    node.reboot();
    node.refused(&["audit", "verify"], 23);
    node.down();
    fs::remove_file(&path).unwrap();
    node.reboot();
    node.refused(&["audit", "verify"], 23);
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn an_auditor_who_kept_a_checkpoint_finds_a_whole_log_put_back_without_any_node() {
    let mut node = Node::boot();
    let log = node.directory().join("vats/audit");
    node.tenants(&["red"]);
    node.down();
    copy(&log, &node.file("old"));
    node.reboot();
    node.tenants(&["blue"]);
    let kept = node.json(&["audit", "verify"]);
    fs::write(node.file("kept.json"), kept.to_string()).unwrap();
    node.down();
    copy(&log, &node.file("copy"));

    let offline = ["audit", "verify", "--dir"];
    let found = node.json(&[&offline[..], &["copy", "--since", "kept.json"]].concat());
    assert!(found["checkpoint"]["size"].as_u64() >= kept["checkpoint"]["size"].as_u64());
    // The older log is whole in itself. Only the checkpoint shows that entries are gone.
    node.ok(&[&offline[..], &["old"]].concat());
    node.refused(&[&offline[..], &["old", "--since", "kept.json"]].concat(), 23);
    let segment = node.file("copy/log-00000000000000000000.seg");
    let mut changed = fs::read(&segment).unwrap();
    changed[200] ^= 1;
    fs::write(&segment, changed).unwrap();
    let said = node.refused(&[&offline[..], &["copy"]].concat(), 23);
    assert!(said.contains("log-00000000000000000000.seg byte "), "{said}");
}
