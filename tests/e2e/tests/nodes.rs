//! Nodes of one cluster, as their operators make it, and tenants' programs elsewhere: each node a boot of
//! its own on this machine, on loopback.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use distos_e2e::cluster::{
    Desk, LINES, LOOPBACK, Member, SERVICES, TEXT, VOUCHED, acquaint, alone, alone_with, connect,
    counting, endless, is_counted, over, results_at, two, words,
};
use distos_e2e::images::{replaced, with_settings};
use distos_e2e::tpm_maker::TpmMaker;
use distos_e2e::watch::Watched;
use distos_e2e::{COMMAND_TIMEOUT, Node, Output, eventually, is_root, repository, wordcount};
use serde_json::Value;

const REVOKED: i32 = 11;
const MALFORMED: i32 = 16;
const EXISTS: i32 = 19;
const UNAUTHENTICATED: i32 = 22;
const UNAVAILABLE: i32 = 17;

/// What `distos connect` says if it ends by itself soon; `None` if it goes on, and then it is ended.
fn ends(desk: &Desk, member: &Member, name: &str) -> Option<Output> {
    let (cap, at) = (format!("{name}.cap"), member.address("memory"));
    let listen = format!("unix:{}", desk.text("refused.sock"));
    let command =
        desk.command(&["connect", &at, "--as", &cap, "--entry", "regions", "--listen", &listen]);
    let mut trying = Watched::spawn(command);
    let begun = Instant::now();
    while trying.run_for(Duration::from_millis(20)) {
        assert!(begun.elapsed() < VOUCHED, "it neither ends nor connects: {}", trying.text());
        if trying.text().contains("leads to") {
            trying.signal(rustix::process::Signal::TERM);
            trying.finish(COMMAND_TIMEOUT);
            return None;
        }
    }
    assert!(!desk.path("refused.sock").exists());
    Some(trying.finish(COMMAND_TIMEOUT))
}

fn node_file(node: &Node, name: &str) -> String {
    node.file(name).to_str().unwrap().to_owned()
}

fn is_refused(desk: &Desk, member: &Member, name: &str) {
    let output = ends(desk, member, name).expect("it was let in");
    assert_eq!(output.code, UNAUTHENTICATED, "{}", output.stderr);
}

/// Whoever is invited needs nobody's offline key, and whoever is not cannot use another's invitation.
#[test]
fn a_node_joins_by_an_invitation_for_its_key_and_nobody_elses() {
    let desk = Desk::set_up();
    let home = Member::join(&desk, 3600);
    let (node, ports) = alone(3600);
    let status = node.json(&["network", "status"]);
    let (number, key) = (status["node"].as_str().unwrap(), status["key"].as_str().unwrap());
    let peer = format!("node/{number}");
    let file = node_file(&node, "invitation.json");
    let at = home.address("network");
    let invite = ["network", "invite", &peer, key, "--at", &at, "--out", &file];
    home.node.ok(&invite);
    // Its operator is asked whether it is the right cluster, unless it is named.
    let told = node.refused(&["network", "accept", &file], UNAUTHENTICATED);
    assert!(told.contains("demo.example") && told.contains("--trust-first-use"), "{told}");
    let wrong = desk.text("issuer.pub");
    node.refused(&["network", "accept", &file, "--root", &wrong], UNAUTHENTICATED);
    // Changed on its way, and at a node that has another key.
    let text = fs::read_to_string(&file).unwrap();
    for (what, with) in [("MII", "MIJ"), ("\"version\": 1", "\"version\": 2")] {
        fs::write(node.file("changed.json"), text.replacen(what, with, 1)).unwrap();
        let output = node.cli(&["network", "accept", "changed.json", "--trust-first-use"]);
        assert!([UNAUTHENTICATED, MALFORMED].contains(&output.code), "{}", output.stderr);
    }
    // One who takes part in the cluster, or makes one of the same name, and changes it.
    let foreign = Desk::set_up();
    let mut changed: Value = serde_json::from_str(&text).unwrap();
    let mut bundle: Value = serde_json::from_str(changed["bundle"].as_str().unwrap()).unwrap();
    let theirs = fs::read_to_string(foreign.path("bundle.json")).unwrap();
    let theirs: Value = serde_json::from_str(&theirs).unwrap();
    bundle["keys"].as_array_mut().unwrap().push(theirs["keys"][0].clone());
    changed["bundle"] = bundle.to_string().into();
    fs::write(node.file("changed.json"), changed.to_string()).unwrap();
    let root = desk.text("root.pub");
    node.refused(&["network", "accept", "changed.json", "--root", &root], UNAUTHENTICATED);
    for from in ["tenant/red".to_owned(), format!("node/{}", "ab".repeat(32))] {
        let mut changed: Value = serde_json::from_str(&text).unwrap();
        changed["from"] = from.into();
        fs::write(node.file("changed.json"), changed.to_string()).unwrap();
        node.refused(&["network", "accept", "changed.json", "--root", &root], UNAUTHENTICATED);
    }
    let other = alone(3600).0;
    other.refused(&["network", "accept", &file, "--trust-first-use"], UNAUTHENTICATED);
    // A change of key that nobody signs leaves no secret behind.
    other.refused(&["network", "rotate"], UNAVAILABLE);
    let kept = fs::read_dir(other.directory().join("vats/network")).unwrap();
    let is_key = |name: &std::ffi::OsStr| name.to_string_lossy().ends_with(".key");
    assert_eq!(kept.filter(|entry| is_key(&entry.as_ref().unwrap().file_name())).count(), 2);
    node.ok(&["network", "accept", &file, "--root", &root]);
    let joined = Member { number: number.to_owned(), node, host: LOOPBACK, ports };
    eventually("every service has an SVID", VOUCHED, || {
        SERVICES[1..].iter().all(|service| joined.until_s(service).is_some()).then_some(())
    });
    let peers = home.node.json(&["peers", "list"]);
    assert_eq!(peers["peers"][0]["invited_s"], 0, "it has come: {peers}");
    assert_eq!(home.node.cli(&invite).code, EXISTS);
    // Put out and invited again, it comes back with SVIDs that were signed since, for all of its services.
    let before: Vec<u64> =
        SERVICES[1..].iter().map(|service| joined.until_s(service).unwrap()).collect();
    // They say until when to the second.
    std::thread::sleep(Duration::from_millis(1100));
    home.node.ok(&["peers", "remove", &peer]);
    let again = node_file(&joined.node, "again.json");
    home.node.ok(&["network", "invite", &peer, key, "--at", &at, "--out", &again]);
    joined.node.ok(&["network", "accept", &again, "--root", &root]);
    eventually("every service has another SVID", VOUCHED, || {
        let now = SERVICES[1..].iter().map(|service| joined.until_s(service).unwrap_or(0));
        now.zip(&before).all(|(now, before)| now > *before).then_some(())
    });
    let peers = home.node.json(&["peers", "list"]);
    assert_eq!(peers["peers"][0]["invited_s"], 0, "it has come back: {peers}");
    // One that does not come is taken off the list.
    let stranger = format!("node/{}", "ab".repeat(32));
    let file = desk.text("unused.json");
    let invite = ["network", "invite", &stranger, key, "--at", &at, "--lasting", "1s"];
    home.node.ok(&[&invite[..], &["--out", &file]].concat());
    eventually("it is taken off", VOUCHED, || {
        let peers = home.node.json(&["peers", "list"]);
        (peers["peers"].as_array().unwrap().len() == 1).then_some(())
    });
}

/// A1: where it is asked for, nobody joins who has not shown the TPM and the image that were expected, and what was
/// stolen on its way, or with the disk, opens at no other machine.
#[test]
fn a_node_joins_by_the_tpm_and_image_that_it_shows_and_its_invitation_opens_nowhere_else() {
    let desk = Desk::set_up();
    let software = |image: &str| image.replace("/dev/tpmrm0", "/dev/no-tpm");
    let by_tpm = |image: &str| {
        replaced(&software(image), "params = { svid_s", "params = { joining = \"tpm\", svid_s")
    };
    let (node, ports) = alone_with(3600, by_tpm);
    let home = Member::of(&desk, node, LOOPBACK, ports);
    let ((node, ports), (thief, _)) = (alone_with(3600, software), alone_with(3600, software));
    let status = node.json(&["network", "status"]);
    let (number, key) = (status["node"].as_str().unwrap(), status["key"].as_str().unwrap());
    let peer = format!("node/{number}");
    let at = home.address("network");
    // Not by a key alone.
    let output = home.node.cli(&["network", "invite", &peer, key, "--at", &at]);
    assert!(output.code == UNAUTHENTICATED && output.stderr.contains("TPM"), "{}", output.stderr);

    let identity = node.json(&["attest", "identity"]);
    assert_eq!(identity, node.json(&["attest", "identity"]), "it stays the same");
    let tpm = identity["endorsement_key"].as_str().unwrap();
    let theirs =
        thief.json(&["attest", "identity"])["endorsement_key"].as_str().unwrap().to_owned();
    assert_ne!(tpm, theirs);
    let image = node.image().to_str().unwrap().to_owned();
    let (challenge, request) = (desk.text("challenge.json"), desk.text("request.json"));
    let invitation = desk.text("invitation.json");
    let present = || {
        home.node.ok(&["network", "challenge", &peer, "--out", &challenge]);
        node.ok(&["network", "present", &challenge, "--out", &request]);
    };
    let invite = |tpm: &str, image: &str| {
        let expected = ["network", "invite", "--request", &request, "--tpm", tpm, "--image", image];
        home.node.cli(&[&expected[..], &["--at", &at, "--out", &invitation]].concat())
    };
    // Another node's challenge is not answered.
    present();
    let told = thief.refused(&["network", "present", &challenge], MALFORMED);
    assert!(told.contains(&peer), "{told}");
    // Another TPM, or another image: refused, and what falls short uses nothing up.
    let refused = |output: Output, why: &str| {
        assert!(output.code == UNAUTHENTICATED && output.stderr.contains(why), "{}", output.stderr);
    };
    refused(invite(&theirs, &image), "another TPM");
    let another = repository().join("images/single.toml");
    refused(invite(tpm, another.to_str().unwrap()), "PCR 11");
    let text = fs::read_to_string(&request).unwrap();
    let changed =
        text.replacen(key, thief.json(&["network", "status"])["key"].as_str().unwrap(), 1);
    assert_ne!(text, changed);
    fs::write(&request, changed).unwrap();
    refused(invite(tpm, &image), "challenge");
    fs::write(&request, text).unwrap();
    assert_eq!(home.node.json(&["peers", "list"])["peers"].as_array().unwrap().len(), 0);
    let output = invite(tpm, &image);
    assert_eq!(output.code, 0, "{}", output.stderr);
    refused(invite(tpm, &image), "no challenge that is open");
    assert!(output.text().contains("not compared with anything: PCR 0"), "{}", output.text());
    let sealed = fs::read_to_string(&invitation).unwrap();
    assert!(!sealed.contains("BEGIN CERTIFICATE") && sealed.contains("sealed invitation"));

    // It opens nowhere else: not at a thief's, and not with this node's disk in another machine.
    let root = desk.text("root.pub");
    let told = thief.refused(&["network", "accept", &invitation, "--root", &root], UNAUTHENTICATED);
    assert!(told.contains("another TPM"), "{told}");
    let mut node = node;
    let (state, kept) = (node.directory().join("vats/swtpm"), desk.path("tpm"));
    node.crash();
    fs::rename(&state, &kept).unwrap();
    node.reboot();
    node.refused(&["network", "accept", &invitation, "--root", &root], UNAUTHENTICATED);
    node.crash();
    fs::remove_dir_all(&state).unwrap();
    fs::rename(&kept, &state).unwrap();
    node.reboot();
    node.ok(&["network", "accept", &invitation, "--root", &root]);
    let joined = Member { number: number.to_owned(), node, host: LOOPBACK, ports };
    eventually("every service has an SVID", VOUCHED, || {
        SERVICES[1..].iter().all(|service| joined.until_s(service).is_some()).then_some(())
    });
    let records = home.node.ok(&["audit", "list"]).text();
    assert!(
        records.contains("is invited for TPM")
            && records.contains("has not shown what was expected"),
        "{records}"
    );
}

/// A1: whoever invites a thousand machines cannot be told of a thousand TPMs; and is not to trust the first that shows up.
#[test]
fn a_node_joins_by_the_certificate_of_its_tpms_maker_and_nobody_was_told_of_its_tpm() {
    let (maker, stranger) = (TpmMaker::found(), TpmMaker::found());
    let desk = Desk::set_up();
    let software = |image: &str| image.replace("/dev/tpmrm0", "/dev/no-tpm");
    let by_tpm = |image: &str| {
        replaced(&software(image), "params = { svid_s", "params = { joining = \"tpm\", svid_s")
    };
    let (node, ports) = alone_with(3600, by_tpm);
    let home = Member::of(&desk, node, LOOPBACK, ports);
    let ((mut node, ports), (mut other, _)) =
        (alone_with(3600, software), alone_with(3600, software));
    for (node, maker) in [(&mut node, &maker), (&mut other, &stranger)] {
        assert_eq!(node.json(&["attest", "identity"])["certificate"], "", "none by itself");
        node.crash();
        maker.supply(node);
        node.reboot();
    }
    let number = node.json(&["network", "status"])["node"].as_str().unwrap().to_owned();
    let (peer, at) = (format!("node/{number}"), home.address("network"));
    let image = node.image().to_str().unwrap().to_owned();
    let (challenge, request) = (desk.text("challenge.json"), desk.text("request.json"));
    let invitation = desk.text("invitation.json");
    home.node.ok(&["network", "challenge", &peer, "--out", &challenge]);
    node.ok(&["network", "present", &challenge, "--out", &request]);
    let invite = |expected: &[&str]| {
        let invite = ["network", "invite", "--request", &request, "--image", &image];
        home.node.cli(&[&invite[..], &["--at", &at, "--out", &invitation], expected].concat())
    };
    let refused = |output: Output, code: i32, why: &str| {
        assert!(output.code == code && output.stderr.contains(why), "{}", output.stderr);
    };
    let folder = |maker: &TpmMaker| maker.roots().to_str().unwrap().to_owned();
    let (ours, theirs) = (folder(&maker), folder(&stranger));
    // Nobody has said whose TPMs are taken; or somebody else's are; or none, by a folder without a root.
    refused(invite(&[]), MALFORMED, "--tpm-roots");
    refused(invite(&["--software-tpm-roots", &theirs]), UNAUTHENTICATED, "certificate chain");
    let empty = desk.text("no-roots");
    fs::create_dir(&empty).unwrap();
    refused(invite(&["--software-tpm-roots", &empty]), MALFORMED, "no root");
    // Another TPM's certificate is none for this one's key.
    let of_other = other.json(&["attest", "identity"])["certificate"].as_str().unwrap().to_owned();
    let own = node.json(&["attest", "identity"])["certificate"].as_str().unwrap().to_owned();
    assert!(!own.is_empty() && own != of_other);
    let text = fs::read_to_string(&request).unwrap();
    let changed = text.replacen(&own, &of_other, 1);
    assert_ne!(text, changed);
    fs::write(&request, changed).unwrap();
    refused(invite(&["--software-tpm-roots", &theirs]), UNAUTHENTICATED, "another key");
    fs::write(&request, text).unwrap();

    let output = invite(&["--software-tpm-roots", &ours]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    assert!(output.text().contains("software TPM, manufacturer"), "{}", output.text());
    let root = desk.text("root.pub");
    other.refused(&["network", "accept", &invitation, "--root", &root], UNAUTHENTICATED);
    node.ok(&["network", "accept", &invitation, "--root", &root]);
    let joined = Member { number, node, host: LOOPBACK, ports };
    eventually("every service has an SVID", VOUCHED, || {
        SERVICES[1..].iter().all(|service| joined.until_s(service).is_some()).then_some(())
    });
    let records = home.node.ok(&["audit", "list"]).text();
    assert!(records.contains("(software TPM, manufacturer"), "{records}");
}

/// Casts the vote of `voter` for `peer`, which is reached there; whether `voter` lets it in now.
fn is_for(voter: &Member, peer: &Member) -> bool {
    let (name, at) = (format!("node/{}", peer.number), peer.address("network"));
    voter.node.json(&["peers", "add", &name, "--at", &at])["let_in"] == true
}

fn lets_in(at: &Member, peer: &Member) -> bool {
    let name = format!("node/{}", peer.number);
    let peers = at.node.json(&["peers", "list"]);
    peers["peers"]
        .as_array()
        .unwrap()
        .iter()
        .any(|one| one["name"] == name && one["let_in"] == true)
}

/// Where a cluster votes on its nodes, no operator lets one in alone, and one that was put out is put out everywhere.
#[test]
fn a_node_is_let_in_and_put_out_by_the_votes_that_the_cluster_asks_for() {
    let desk = Desk::set_up();
    let (one, mut two) = two(&desk, 3600);
    let key = |member: &Member| {
        let status = member.node.json(&["network", "status"]);
        format!("node/{}={}", member.number, status["issuer_key"].as_str().unwrap())
    };
    let voters = [key(&one), key(&two)];
    let configure = ["cluster", "configure", "--voter", &voters[0], "--voter", &voters[1]];
    let said = desk.ok(&[&configure[..], &["--admit", "2", "--require-hybrid"]].concat());
    assert!(said.contains("configuration 1") && said.contains("2 of 2 votes"), "{said}");
    let file = desk.text("configuration.json");
    // Nobody but the root says what holds in the cluster.
    let foreign = Desk::set_up();
    foreign.ok(&["cluster", "configure", "--require-hybrid"]);
    let other = foreign.text("configuration.json");
    one.node.refused(&["network", "configure", &other], UNAUTHENTICATED);
    let text = fs::read_to_string(&file).unwrap();
    fs::write(desk.path("changed.json"), text.replacen("\"admit\": 2", "\"admit\": 1", 1)).unwrap();
    one.node.refused(&["network", "configure", &desk.text("changed.json")], UNAUTHENTICATED);
    // One node is told, and the other hears of it.
    one.node.ok(&["network", "configure", &file]);
    eventually("the other goes by it, too", VOUCHED, || {
        (two.node.json(&["network", "status"])["configuration"]["number"] == 1).then_some(())
    });
    assert!(lets_in(&one, &two) && lets_in(&two, &one), "they vote");

    // A third: one voter invites it, and that is not enough.
    let (node, ports) = alone(3600);
    let status = node.json(&["network", "status"]);
    let (number, key) = (status["node"].as_str().unwrap(), status["key"].as_str().unwrap());
    let (name, at) = (format!("node/{number}"), one.address("network"));
    let invitation = node.file("invitation.json").to_str().unwrap().to_owned();
    one.node.ok(&["network", "invite", &name, key, "--at", &at, "--out", &invitation]);
    let root = desk.text("root.pub");
    node.ok(&["network", "accept", &invitation, "--root", &root]);
    let mut third = Member { number: number.to_owned(), node, host: LOOPBACK, ports };
    assert!(!lets_in(&one, &third) && !lets_in(&two, &third));
    std::thread::sleep(Duration::from_secs(3));
    assert!(third.until_s("memory").is_none(), "nobody signs for it");
    // The first says where it is, the second is for it, and both let it in; it hears who the others are.
    assert!(!is_for(&one, &third));
    assert!(is_for(&two, &third));
    eventually("it is let in and has its SVIDs", VOUCHED, || {
        SERVICES[1..].iter().all(|service| third.until_s(service).is_some()).then_some(())
    });
    eventually("it lets the others in", VOUCHED, || {
        (lets_in(&third, &one) && lets_in(&third, &two) && lets_in(&one, &third)).then_some(())
    });
    let status = third.node.json(&["network", "status"]);
    assert_eq!(status["configuration"]["hybrid_only"], true);
    // It has no vote itself, and one of another number is not taken.
    third.node.ok(&["peers", "add", "tenant/red"]);
    let stranger = format!("node/{}", "ab".repeat(32));
    assert_eq!(third.node.json(&["peers", "add", &stranger])["let_in"], false);

    // It is away while it is put out: by one vote, and everywhere. The other voter hears of it at once.
    third.node.crash();
    one.node.ok(&["peers", "remove", &name]);
    assert!(!lets_in(&one, &third) && !lets_in(&two, &third));
    let records = two.node.ok(&["audit", "list"]).text();
    assert!(records.contains("is no longer let in"), "{records}");
    // After a restart it is so still, and a vote for it takes back the one against it.
    two.node.crash();
    two.node.reboot();
    assert!(!lets_in(&two, &third));
    assert!(is_for(&one, &third));
    eventually("the other hears of that, too", VOUCHED, || lets_in(&two, &third).then_some(()));

    // An older configuration is refused, and a later one holds.
    let older = text;
    // What holds is not dropped by the way.
    for dropping in [&["--require-hybrid"][..], &["--voter", &voters[0]], &["--number", "1"]] {
        let output = desk.run(&[&["cluster", "configure"][..], dropping].concat());
        assert_eq!(output.code, MALFORMED, "{dropping:?}: {}", output.stderr);
    }
    let lost = ["cluster", "configure", "--require-hybrid", "--number", "2", "--out", "lost.json"];
    assert_eq!(desk.run(&lost).code, MALFORMED);
    // Nor is the number of votes: two do not come from one voter.
    let one_voter = ["cluster", "configure", "--voter", &voters[0], "--require-hybrid"];
    assert_eq!(desk.run(&one_voter).code, MALFORMED);
    desk.ok(&[&one_voter[..], &["--admit", "1"]].concat());
    one.node.ok(&["network", "configure", &file]);
    fs::write(desk.path("older.json"), older).unwrap();
    let told = one.node.refused(&["network", "configure", &desk.text("older.json")], MALFORMED);
    assert!(told.contains("number 1") && told.contains("number 2"), "{told}");
    eventually("the other has lost its vote", VOUCHED, || {
        let status = two.node.json(&["network", "status"]);
        (status["configuration"]["number"] == 2).then_some(())
    });
    assert!(lets_in(&two, &one), "a voter");
    // Whoever has no vote refuses whom it likes all the same, also of whom nobody has spoken yet.
    two.node.ok(&["peers", "remove", &stranger]);
    one.node.ok(&["peers", "add", &stranger]);
    eventually("the other hears of it", VOUCHED, || {
        let peers = two.node.json(&["peers", "list"]);
        let peers = peers["peers"].as_array().unwrap();
        let found = peers.iter().find(|one| one["name"] == stranger)?;
        (found["admit"] == 1 && found["put_out"] == true)
            .then(|| assert_eq!(found["let_in"], false))
    });
    // Whoever has not heard that a node was put out goes on letting it in: so it is named, and again when it is said again.
    two.node.crash();
    for _ in 0..2 {
        let told = one.node.refused(&["peers", "remove", &stranger], UNAVAILABLE);
        assert!(told.contains(&format!("node/{}", two.number)), "{told}");
    }
}

/// Whoever is cut off from those who vote cannot know whom they have put out: it places nothing new.
#[test]
fn a_node_that_hears_too_few_voters_runs_no_new_job_until_it_hears_more() {
    let desk = Desk::set_up();
    let (one, mut two) = two(&desk, 3600);
    one.node.tenants(&["red"]);
    fs::write(one.node.file("text"), "so few words").unwrap();
    one.node.ok(&["region", "put", "words", "text", "--as", "red.cap"]);
    let module = wordcount().to_str().unwrap().to_owned();
    let count = ["run", &module, "--input", "words", "--map", "map", "--as", "red.cap"];
    one.node.ok(&count);
    let voters = [&one, &two].map(|member| {
        let status = member.node.json(&["network", "status"]);
        format!("node/{}={}", member.number, status["issuer_key"].as_str().unwrap())
    });
    desk.ok(&["cluster", "configure", "--voter", &voters[0], "--voter", &voters[1]]);
    one.node.ok(&["network", "configure", &desk.text("configuration.json")]);
    let runs = || one.node.cli(&count);
    eventually("it hears the other voter", VOUCHED, || (runs().code == 0).then_some(()));
    two.node.crash();
    eventually("it hears nothing any more", VOUCHED, || {
        let output = runs();
        let told = "hears 1 of the 2 nodes that vote";
        (output.code == UNAVAILABLE && output.stderr.contains(told)).then_some(())
    });
    // What it has already goes on to be served.
    one.node.ok(&["region", "get", "words", "--as", "red.cap", "-o", "again"]);
    two.node.reboot();
    eventually("it hears the other voter again", VOUCHED, || (runs().code == 0).then_some(()));
}

/// Whom all had let in stays let in when the cluster begins to vote: what services are told is what the list says.
#[test]
fn whoever_all_had_let_in_is_reached_on_when_the_cluster_begins_to_vote() {
    let desk = Desk::set_up();
    let (one, two) = two(&desk, 3600);
    let third = Member::join(&desk, 3600);
    for voter in [&one, &two] {
        acquaint(voter, &third);
    }
    let key = |member: &Member| {
        let status = member.node.json(&["network", "status"]);
        format!("node/{}={}", member.number, status["issuer_key"].as_str().unwrap())
    };
    let voters = [key(&one), key(&two)];
    desk.ok(&["cluster", "configure", "--voter", &voters[0], "--voter", &voters[1]]);
    one.node.ok(&["network", "configure", &desk.text("configuration.json")]);
    let all = [&one, &two, &third];
    let pairs = || all.iter().flat_map(|at| all.iter().map(move |peer| (at, peer)));
    let others = || pairs().filter(|(at, peer)| at.number != peer.number);
    eventually("all go by it, and let one another in", VOUCHED, || {
        let number = |at: &Member| {
            at.node.json(&["network", "status"])["configuration"]["number"].as_u64() == Some(1)
        };
        let done = all.iter().all(|at| number(at)) && others().all(|(at, peer)| lets_in(at, peer));
        done.then_some(())
    });
    // Not only in the list: each hears each again, after two heartbeats would have been missed.
    std::thread::sleep(Duration::from_secs(11));
    for (at, peer) in others() {
        let name = format!("node/{}", peer.number);
        let peers = at.node.json(&["peers", "list"]);
        let found = peers["peers"].as_array().unwrap().iter().find(|one| one["name"] == name);
        let heard_ms = found.unwrap()["heard_ms"].as_u64().unwrap();
        assert!(heard_ms < 10_000, "{} has not heard {name} for {heard_ms} ms", at.number);
    }
}

/// C2: whoever ends something is not told that it has ended before it has, and it ends however long its home is away.
#[test]
fn what_is_revoked_while_its_home_is_away_ends_when_that_is_back_whoever_was_told_is_gone_then() {
    let desk = Desk::set_up();
    let (mut home, mut other) = two(&desk, 3600);
    let third = Member::join(&desk, 3600);
    acquaint(&home, &third);
    acquaint(&other, &third);
    let red = |line: &str| -> Vec<String> { line.split(' ').map(str::to_owned).collect() };
    let at_home = |home: &Member, line: &str| {
        let line = red(line);
        home.node.cli(&words(&line))
    };
    home.node.tenants(&["red", "blue"]);
    fs::write(home.node.file("text"), "so few words").unwrap();
    home.node.ok(&["region", "put", "words", "text", "--as", "red.cap", "--out", "words.cap"]);
    for name in ["first", "second", "third"] {
        let delegate = ["cap", "delegate", "words.cap", "--as", "red.cap", "--to", "blue.pub"];
        home.node.ok(&[&delegate[..], &["--out", &format!("{name}.cap")]].concat());
    }
    let redeem = |home: &Member, name: &str| {
        at_home(home, &format!("cap redeem {name}.cap --as blue.cap")).code
    };
    assert_eq!([redeem(&home, "first"), redeem(&home, "second")], [0, 0]);
    // Red is a tenant of the other node, too, and may leave there what it ends.
    other.node.ok(&["peers", "add", "tenant/red"]);
    let agents = home.node.file("agents.cap").to_str().unwrap().to_owned();
    let key = home.node.file("red.pub").to_str().unwrap().to_owned();
    other.node.ok(&["network", "agents", "red", "--to", &key, "--out", &agents]);
    fs::copy(home.node.file("red.key"), home.node.file("agents.key")).unwrap();
    let revoke = |home: &Member, name: &str, by: &str| {
        at_home(home, &format!("cap revoke {name}.cap --as {by}.cap --through agents.cap --json"))
    };
    // Blue may not end what is red's; and each end is told when it is one.
    let output = revoke(&home, "first", "red");
    assert_eq!(output.code, 0, "{}", output.stderr);
    assert!(output.text().contains("\"ended\":true"), "its home is there: {}", output.text());
    assert_eq!(redeem(&home, "first"), REVOKED);
    assert_eq!(redeem(&home, "second"), 0);
    let records = home.node.ok(&["audit", "list"]).text();
    assert!(records.contains("was ended by key"), "{records}");

    // Its home is away, and then whoever was told is.
    let operator = third.node.directory().join("operator/operator.cap");
    home.node.crash();
    let output = revoke(&home, "second", "red");
    assert_eq!(output.code, 0, "{}", output.stderr);
    assert!(output.text().contains("\"ended\":false"), "{}", output.text());
    let carried = || {
        let records = third.node.directory().join("vats/network");
        let mut files = fs::read_dir(records).unwrap();
        let name = format!("revocations-{}", home.number);
        files.any(|entry| entry.unwrap().file_name().to_str() == Some(&name)).then_some(())
    };
    eventually("the third node has heard of it", VOUCHED, carried);
    other.node.crash();
    home.node.reboot();
    eventually("it ends at its home", VOUCHED, || {
        (redeem(&home, "second") == REVOKED).then_some(())
    });
    // By the operator of a node, and of what nobody has redeemed yet; the node that carries it is ended meanwhile.
    home.node.crash();
    let line = format!("cap revoke third.cap --as red.cap --through {}", operator.display());
    let output = at_home(&home, &line);
    assert!(
        output.code == 0 && output.text().contains("has not said that it has ended"),
        "{}",
        output.text()
    );
    let mut third = third;
    third.node.crash();
    home.node.reboot();
    assert_eq!(redeem(&home, "third"), 0, "nobody has told it");
    third.node.reboot();
    eventually("it ends at its home", VOUCHED, || {
        (redeem(&home, "third") == REVOKED).then_some(())
    });
    // And nothing else has.
    assert_eq!(at_home(&home, "cap redeem words.cap --as red.cap").code, 0);
    // One that is nobody's to end is not carried.
    other.node.reboot();
    let output = revoke(&home, "words", "blue");
    assert_eq!(output.code, UNAUTHENTICATED, "{}", output.stderr);
    // Whoever holds something gives it up, by whomever it is brought: also the whole of what the operator gave.
    home.node.ok(&[
        "cap",
        "delegate",
        "words.cap",
        "--as",
        "red.cap",
        "--to",
        "blue.pub",
        "--out",
        "own.cap",
    ]);
    for (name, by) in [("own", "blue"), ("words", "red")] {
        eventually("the home is reached", VOUCHED, || {
            let output = revoke(&home, name, by);
            assert_eq!(output.code, 0, "{}", output.stderr);
            output.text().contains("\"ended\":true").then_some(())
        });
        assert_eq!(at_home(&home, &format!("cap redeem {name}.cap --as {by}.cap")).code, REVOKED);
    }
}

/// N2, C4: red's programs work with a node from elsewhere as long as the operator lets red in.
#[test]
fn a_tenants_programs_work_with_a_node_from_elsewhere_until_it_is_taken_off_the_list() {
    let desk = Desk::set_up();
    let (home, _other) = two(&desk, 3600);
    home.node.tenants(&["red", "blue"]);
    for name in ["red", "blue"] {
        desk.agent(&home.node, name);
    }
    // A certificate of the cluster opens nothing by itself.
    is_refused(&desk, &home, "red");
    home.node.ok(&["peers", "add", "tenant/red"]);
    let red = connect(&desk, &home, "red", "far");
    is_refused(&desk, &home, "blue");

    // Our own command line, and a program in another language that knows no QUIC.
    let text = "from far away\n".repeat(10_000);
    fs::write(desk.path("text"), &text).unwrap();
    let (file, far) = (desk.text("text"), desk.text("far"));
    desk.ok(&["region", "put", "letters", &file, "--as", "red.cap", "--node", &far]);
    let back = desk.ok(&["region", "get", "letters", "--as", "red.cap", "--node", &far]);
    assert!(back == text, "the bytes are another's");
    assert_eq!(
        home.node.json(&["region", "list", "--as", "red.cap"])["regions"][0]["name"],
        "letters"
    );
    let mut python = Command::new(repository().join("target/foreign/python/bin/python"));
    python.arg(repository().join("docs/examples/python/client.py"));
    python.args(["red.cap", "--sockets", "far/run", "--name", "r", "--out", "r.cap"]);
    python.current_dir(desk.path(""));
    let mut python = Watched::spawn(python);
    let begun = Instant::now();
    let waits = |python: &Watched| python.text().contains("\nwaiting: ");
    while !waits(&python) {
        // It waits for a line, and nobody gives it one: it may have ended meanwhile.
        let goes_on = python.run_for(Duration::from_millis(20));
        assert!(begun.elapsed() < VOUCHED, "{}", python.text());
        assert!(goes_on || waits(&python), "{}", python.text());
    }

    // One command, and when it returns nothing of red's is served over the network.
    home.node.ok(&["peers", "remove", "tenant/red", "--keep-capabilities"]);
    let cut = desk.run(&["region", "list", "--as", "red.cap", "--node", &far]);
    assert_eq!(cut.code, UNAVAILABLE, "{}", cut.stderr);
    is_refused(&desk, &home, "red");
    // What red holds goes on to work on the node itself, until that is ended too.
    home.node.ok(&["region", "get", "letters", "--as", "red.cap"]);
    let endless =
        "(module (memory (export \"memory\") 1) (func (export \"_start\") (loop (br 0))))";
    fs::write(home.node.file("endless.wasm"), wat::parse_str(endless).unwrap()).unwrap();
    let run = ["run", "endless.wasm", "--input", "letters", "--as", "red.cap"];
    let mut job = Watched::spawn(home.node.command(&run));
    assert!(job.run_for(Duration::from_secs(1)), "{}", job.text());
    home.node.ok(&["peers", "add", "tenant/red"]);
    red.signal(rustix::process::Signal::TERM);
    red.finish(COMMAND_TIMEOUT);
    assert!(!desk.path("far/run/memory.sock").exists(), "it takes its socket away");
    let red_again = connect(&desk, &home, "red", "far");
    let told = home.node.json(&["peers", "remove", "tenant/red"]);
    assert!(told["revoked"]["given"].as_u64().unwrap() > 0, "{told}");
    let ended = job.finish(Duration::from_secs(5));
    assert_eq!(ended.code, REVOKED, "{}", ended.stderr);
    home.node.refused(&["region", "get", "letters", "--as", "red.cap"], REVOKED);
    let tree = home.node.json(&["cap", "tree", "--tenant", "red"]);
    assert!(tree["nodes"].as_array().unwrap().iter().all(|node| node["link"] == ""), "{tree}");
    drop((python, red_again));
}

/// Handoff: a job runs at one node over regions of another, which its executor takes itself; that node decides
/// for how long.
#[test]
fn a_job_runs_at_one_node_over_what_another_keeps_until_that_one_takes_it_back() {
    let desk = Desk::set_up();
    let (home, other) = two(&desk, 3600);
    for member in [&home, &other] {
        member.node.tenants(&["red"]);
    }
    let count = counting(&home);
    is_counted(&other, &count);
    // Whose executor it was, that node's auditor can tell.
    let log = home.node.json(&["audit", "list"]);
    let taken = format!("node/{}/service/executor/red", other.number);
    let told = log.as_array().unwrap().iter().any(|entry| {
        entry["kind"] == "handoff" && entry["detail"].as_str().unwrap().starts_with(&taken)
    });
    assert!(told, "nobody has taken anything: {log}");
    // A node that is no peer takes nothing, whatever was given to it.
    let peer = format!("node/{}", other.number);
    home.node.ok(&["peers", "remove", &peer]);
    let refused = other.node.refused(&words(&count), UNAUTHENTICATED);
    assert!(refused.contains("does not trust us"), "{refused}");
    home.meet(&other);
    eventually("it is a peer again", VOUCHED, || {
        (other.node.cli(&words(&count)).code == 0).then_some(())
    });
    // Red takes back what it uses there, while it is used elsewhere (C2).
    let job = endless(&other, &home, "letters");
    home.node.ok(&["cap", "revoke", "red.cap", "--entry", "regions"]);
    let ended = job.finish(Duration::from_secs(10));
    assert_eq!(ended.code, REVOKED, "{}", ended.stderr);
}

/// What a job reads at another node comes beside the calls, where others of the same connection wait for it.
#[test]
fn a_job_at_another_node_gets_many_bytes_by_streams_and_counts_them_right() {
    let desk = Desk::set_up();
    let log = "log = \"distos_quic=debug\"";
    let (node, ports) = alone_with(3600, |image| with_settings(image, "memory", log));
    let home = Member::of(&desk, node, LOOPBACK, ports);
    let other = Member::join(&desk, 3600);
    acquaint(&home, &other);
    for member in [&home, &other] {
        member.node.tenants(&["red"]);
    }
    let lines = 16 * LINES;
    fs::write(home.node.file("text"), TEXT.repeat(lines)).unwrap();
    home.node.ok(&["region", "put", "letters", "text", "--as", "red.cap"]);
    let module = wordcount().to_str().unwrap().to_owned();
    let count = ["run", &module, "--input", "letters", "--map", "map", "--reduce", "reduce"];
    let count: Vec<String> = count.map(str::to_owned).into_iter().chain(over(&home)).collect();
    let counted = other.node.ok(&words(&count)).text();
    let numbers: Vec<&str> = counted.split_whitespace().collect();
    let expected = [lines, 7 * lines, TEXT.len() * lines].map(|number| number.to_string());
    assert_eq!(numbers, expected, "{counted}");
    let log = home.node.log();
    assert!(log.contains("sent by a stream"), "it came in calls:\n{log}");
}

/// Network namespaces, each joined to a switch in one of its own by a cable. They end with this.
struct Cables {
    nodes: [String; 3],
    switch: String,
    wire: Option<(Child, BufReader<ChildStdout>)>,
}

const HOSTS: [&str; 3] = ["10.77.0.1", "10.77.0.2", "10.77.0.3"];
/// What the switch does to each frame: so many milliseconds late, and of a hundred so many lost.
const DELAY_MS: &str = "10";
const LOSS: &str = "2";

impl Cables {
    /// An error where this machine does not permit it, or lacks `ip`.
    fn new() -> Result<Cables, String> {
        let name = |end: &str| format!("distos-{}-{end}", std::process::id());
        let (nodes, switch) = (["a", "b", "c"].map(name), name("switch"));
        let mut cables = Cables { nodes, switch, wire: None };
        let switch = &cables.switch;
        ip(&["netns", "add", switch])?;
        for (index, (node, host)) in cables.nodes.iter().zip(HOSTS).enumerate() {
            ip(&["netns", "add", node])?;
            ip(&["-n", node, "link", "set", "lo", "up"])?;
            let far = format!("end{index}");
            let ends = ["link", "add", "cable", "type", "veth", "peer", "name", &far];
            ip(&[&["-n", node][..], &ends, &["netns", switch]].concat())?;
            ip(&["-n", node, "address", "add", &format!("{host}/24"), "dev", "cable"])?;
            // Whoever carries frames takes one datagram at a time.
            ip(&["-n", node, "link", "set", "cable", "gso_max_segs", "1"])?;
            ip(&["-n", node, "link", "set", "cable", "up"])?;
            ip(&["-n", switch, "link", "set", &far, "up"])?;
        }
        let script = repository().join("tests/e2e/wire.py");
        let mut wire = Command::new("ip");
        wire.args(["netns", "exec", switch, "python3"]).arg(script).args([DELAY_MS, LOSS, "1"]);
        wire.args(["end0", "end1", "end2"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut wire = wire.spawn().map_err(|error| format!("python3: {error}"))?;
        let said = wire.stdout.take().map(BufReader::new).ok_or("no output")?;
        cables.wire = Some((wire, said));
        match cables.said()?.as_str() {
            "ready" => Ok(cables),
            other => Err(format!("the switch says: {other}")),
        }
    }

    fn said(&mut self) -> Result<String, String> {
        let (_, said) = self.wire.as_mut().ok_or("there is no switch")?;
        let mut line = String::new();
        said.read_line(&mut line).map_err(|error| error.to_string())?;
        Ok(line.trim().to_owned())
    }

    /// How many frames the switch has carried, and how many it has lost.
    fn carried(&mut self) -> (u64, u64) {
        let wire = self.wire.as_mut().and_then(|(wire, _)| wire.stdin.as_mut());
        wire.unwrap().write_all(b"\n").unwrap();
        let said = self.said().unwrap();
        let (carried, lost) = said.split_once(' ').unwrap();
        (carried.parse().unwrap(), lost.parse().unwrap())
    }

    fn cut(&self, node: usize) {
        ip(&["-n", &self.nodes[node], "link", "set", "cable", "down"]).unwrap();
    }

    fn mend(&self, node: usize) {
        ip(&["-n", &self.nodes[node], "link", "set", "cable", "up"]).unwrap();
    }

    /// A node at one end. Elsewhere nobody uses the ports of its image.
    fn node(&self, end: usize) -> Node {
        let image = fs::read_to_string(repository().join("images/cluster.toml")).unwrap();
        let within = ["netns", "exec", &self.nodes[end]];
        let mut node = Node::under(&image, Path::new("ip"), &within);
        node.reboot();
        node
    }
}

impl Drop for Cables {
    fn drop(&mut self) {
        if let Some((wire, _)) = &mut self.wire {
            // It may have ended by itself.
            let _ = wire.kill();
            let _ = wire.wait();
        }
        for name in self.nodes.iter().chain([&self.switch]) {
            // One that was not made cannot be removed.
            let _ = ip(&["netns", "delete", name]);
        }
    }
}

fn ip(args: &[&str]) -> Result<(), String> {
    tool("ip", args)
}

fn tool(name: &str, args: &[&str]) -> Result<(), String> {
    let output = Command::new(name).args(args).output();
    let output = output.map_err(|error| format!("{name}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() { Ok(()) } else { Err(format!("{name} {}: {said}", args.join(" "))) }
}

/// C2 where nothing is heard: whoever is cut off from where its regions are stops within the lease, by itself.
#[test]
fn nodes_on_bad_cables_work_together_and_one_that_is_cut_off_stops_within_its_lease() {
    let mut cables = match Cables::new() {
        Ok(cables) => cables,
        Err(why) => {
            println!("skipped: no network namespaces here: {why}");
            return;
        }
    };
    let desk = Desk::set_up();
    let ports: Vec<u16> = (7400..).take(SERVICES.len()).collect();
    let member = |end: usize| Member::of(&desk, cables.node(end), HOSTS[end], ports.clone());
    let (home, other, third) = (member(0), member(1), member(2));
    for (one, other) in [(&home, &other), (&other, &third), (&third, &home)] {
        acquaint(one, other);
    }
    for member in [&home, &other, &third] {
        member.node.tenants(&["red"]);
    }
    let count = counting(&home);
    is_counted(&other, &count);
    // At a third node, which keeps nothing itself.
    is_counted(&third, &[&count[..], &results_at(&other)].concat());
    let job = endless(&other, &home, "letters");
    cables.cut(0);
    let begun = Instant::now();
    let ended = job.finish(Duration::from_secs(30));
    let took = begun.elapsed();
    println!("it went on for {took:?} after the cut; the lease is 5 s");
    assert_eq!(ended.code, UNAVAILABLE, "{}", ended.stderr);
    // The program is stopped at once; what took longer is the command's own cleaning up.
    assert!(took < Duration::from_secs(9), "{took:?}");
    // Those who are not cut off go on.
    let theirs = counting(&third);
    is_counted(&other, &theirs);
    cables.mend(0);
    eventually("they work together again", VOUCHED, || {
        (other.node.cli(&words(&count)).code == 0).then_some(())
    });
    let (carried, lost) = cables.carried();
    println!("the switch has carried {carried} frames and lost {lost}");
    assert!(lost > 20 && carried > 40 * lost, "{carried} and {lost}: it was no bad switch");
}

/// Nodes say that they are there, and ask one another; whoever says nothing and is not reached is suspect, and nothing
/// else follows from it.
#[test]
fn a_node_that_dies_is_suspect_at_the_others_until_it_is_heard_again() {
    let desk = Desk::set_up();
    let (home, mut other) = two(&desk, 3600);
    let heard = |member: &Member| -> Option<(u64, bool)> {
        let peer = member.node.json(&["peers", "list"])["peers"][0].clone();
        Some((peer["heard_ms"].as_u64()?, peer["suspect"].as_bool()?))
    };
    for member in [&home, &other] {
        eventually("the other is heard", VOUCHED, || heard(member).filter(|heard| !heard.1));
    }
    let told = |what: &str| {
        let log = home.node.json(&["audit", "list"]);
        let entries = log.as_array().unwrap().clone();
        entries.iter().any(|entry| entry["detail"].as_str().unwrap().contains(what))
    };
    let mut is_noticed = false;
    // By asking, before fifteen seconds are over; of one that has only just come, or on a busy machine, by its silence.
    for _ in 0..3 {
        std::thread::sleep(Duration::from_secs(8));
        other.node.crash();
        let (ms, _) = eventually("it is suspect", VOUCHED, || heard(&home).filter(|heard| heard.1));
        assert!((6_000..30_000).contains(&ms), "suspect after {ms} ms");
        eventually("it is told", VOUCHED, || told("it is suspect").then_some(()));
        let begun = Instant::now();
        while !is_noticed && begun.elapsed() < Duration::from_secs(5) {
            is_noticed = told("is not reached: it is suspect");
        }
        if is_noticed {
            break;
        }
        other.node.start();
        other.node.wait_until_ready();
        eventually("it is heard again", VOUCHED, || heard(&home).filter(|heard| !heard.1));
    }
    assert!(is_noticed, "nobody has asked it");
    // Membership is the operator's to change.
    let listed = home.node.json(&["peers", "list"])["peers"].as_array().unwrap().len();
    assert_eq!(listed, 1);
    other.node.start();
    other.node.wait_until_ready();
    eventually("it is heard again", VOUCHED, || heard(&home).filter(|heard| !heard.1));
    eventually("it is told", VOUCHED, || told("is heard again").then_some(()));
    // What it has heard before its death it does not hear again, and it hears what is new.
    eventually("the other is heard", VOUCHED, || heard(&other).filter(|heard| !heard.1));
}

/// Rotation drops no call; without it there is no access, and none is let in meanwhile.
#[test]
fn svids_are_renewed_while_calls_go_on_and_without_another_node_they_run_out() {
    let desk = Desk::set_up();
    let (home, mut other) = two(&desk, 6);
    home.node.tenants(&["red"]);
    desk.agent(&home.node, "red");
    home.node.ok(&["peers", "add", "tenant/red"]);
    let red = connect(&desk, &home, "red", "far");
    let far = desk.text("far");
    desk.ok(&["region", "create", "r", "--bytes", "64K", "--as", "red.cap", "--node", &far]);
    let first_s = home.until_s("memory").unwrap();
    let begun = Instant::now();
    // More than twice the time for which the first one holds.
    while begun.elapsed() < Duration::from_secs(14) {
        desk.ok(&["region", "list", "--as", "red.cap", "--node", &far]);
    }
    let key = |member: &Member| member.node.json(&["network", "status"])["key"].clone();
    let before = key(&home);
    let told = home.node.json(&["network", "rotate"]);
    assert!(told["key"] == key(&home) && told["key"] != before);
    desk.ok(&["region", "list", "--as", "red.cap", "--node", &far]);
    let later_s = home.until_s("memory").unwrap();
    assert!(later_s >= first_s + 10, "{first_s} and then {later_s}");
    other.node.down();
    // Nobody vouches for the node any more.
    let gone = eventually("nobody is served", VOUCHED, || ends(&desk, &home, "red"));
    assert_eq!(gone.code, UNAUTHENTICATED, "{}", gone.stderr);
    let cut = desk.run(&["region", "list", "--as", "red.cap", "--node", &far]);
    assert_eq!(cut.code, UNAVAILABLE, "{}", cut.stderr);
    // A change of the list does not wait for an SVID.
    home.node.ok(&["peers", "remove", "tenant/red", "--keep-capabilities"]);
    drop(red);
}

/// The sockets of the machine's own network that a process has: local address and kind.
fn ip_sockets(pid: u32) -> Vec<String> {
    let listing = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let links = listing.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let inodes: Vec<String> = links
        .filter_map(|link| {
            let inode = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
            Some(inode.to_owned())
        })
        .collect();
    let mut found = Vec::new();
    // Those of this machine, and those that it may have made in a namespace of its own.
    for net in ["/proc/net".to_owned(), format!("/proc/{pid}/net")] {
        for kind in ["udp", "udp6", "tcp", "tcp6", "raw", "raw6", "packet"] {
            let table = fs::read_to_string(format!("{net}/{kind}")).unwrap_or_default();
            for line in table.lines().skip(1) {
                let fields: Vec<&str> = line.split_whitespace().collect();
                if fields.iter().any(|field| inodes.iter().any(|inode| inode == field)) {
                    let port = fields[1].rsplit_once(':').map_or("", |(_, port)| port);
                    found.push(format!("{kind} {}", u16::from_str_radix(port, 16).unwrap_or(0)));
                }
            }
        }
    }
    found.sort();
    found.dedup();
    found
}

/// N1: what `distos image check` lists as paths to the outside is what there is.
#[test]
fn a_nodes_services_have_the_sockets_that_the_image_check_lists_and_no_others() {
    if !is_root() {
        println!("skipped: only root sees the descriptors of vats with uids of their own");
        return;
    }
    let desk = Desk::set_up();
    let home = Member::join(&desk, 3600);
    let image = home.node.image().to_str().unwrap().to_owned();
    let checked = home.node.json(&["image", "check", &image]);
    let paths = checked["paths"].as_array().unwrap();
    for service in SERVICES {
        let outside = paths.iter().filter(|path| path["from"] == "the network");
        let listed: Vec<String> = outside
            .filter(|path| path["to"] == service)
            .map(|path| {
                let over = path["over"].as_str().unwrap();
                format!("udp {}", over.rsplit_once(':').unwrap().1)
            })
            .collect();
        assert_eq!(listed, [format!("udp {}", home.address(service).rsplit_once(':').unwrap().1)]);
        assert_eq!(ip_sockets(home.node.pid_of(service)), listed, "{service}");
    }
    assert_eq!(ip_sockets(home.node.kernel_pid()), Vec::<String>::new());
    assert_eq!(ip_sockets(home.node.up_pid()), Vec::<String>::new());
    // A socket of which nobody knows what is spoken there.
    let text = fs::read_to_string(home.node.image()).unwrap();
    let text = replaced(&text, "devices = { quic = \"memory\" }", "devices = { udp = \"memory\" }");
    fs::write(home.node.file("other.toml"), text).unwrap();
    let told = home.node.refused(&["image", "check", "other.toml"], MALFORMED);
    assert!(told.contains("the network → memory"), "{told}");
}
