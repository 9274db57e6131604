//! Nodes that hear of one another by a store alone: three real etcd members, which are ended, cut off from one
//! another and started again, and to which somebody writes what nobody has signed.
#![allow(clippy::unwrap_used)]

use std::process::Command;
use std::time::{Duration, Instant};

use distos_e2e::cluster::{Desk, Member, VOUCHED};
use distos_e2e::etcd::Store;
use distos_e2e::watch::Watched;
use distos_e2e::{COMMAND_TIMEOUT, distos, eventually};
use etcd_client::{
    Certificate, Client, ConnectOptions, DeleteOptions, GetOptions, Identity, TlsOptions,
};
use rustix::process::Signal;

const DENIED: i32 = 10;
const REVOKED: i32 = 11;
const MALFORMED: i32 = 16;
const UNAVAILABLE: i32 = 17;
/// Within which time what is left in a store is heard by whoever reaches it. A member that was away takes a while to
/// find the others again.
const HEARD: Duration = Duration::from_secs(60);
/// How long to wait for what is not to happen.
const NOT_HEARD: Duration = Duration::from_secs(8);

/// A cluster of three voters that do not know where the others are.
fn voters(desk: &Desk) -> Vec<Member> {
    let members: Vec<Member> = (0..3).map(|_| Member::join(desk, 3600)).collect();
    let mut configure = vec!["cluster".to_owned(), "configure".to_owned()];
    for member in &members {
        let status = member.node.json(&["network", "status"]);
        let key = status["issuer_key"].as_str().unwrap();
        configure.extend(["--voter".to_owned(), format!("node/{}={key}", member.number)]);
    }
    let configure: Vec<&str> = configure.iter().map(String::as_str).collect();
    desk.ok(&[&configure[..], &["--admit", "2"]].concat());
    members
}

/// Whom nobody knows.
fn stranger(number: u8) -> String {
    format!("node/{}", hex::encode([number; 32]))
}

fn lets_in(at: &Member, name: &str) -> bool {
    let peers = at.node.json(&["peers", "list"]);
    let peers = peers["peers"].as_array().unwrap();
    peers.iter().any(|one| one["name"] == name && one["let_in"] == true)
}

/// How many are for a node, as this one has heard.
fn votes(at: &Member, name: &str) -> u64 {
    let peers = at.node.json(&["peers", "list"]);
    let peers = peers["peers"].as_array().unwrap();
    let found = peers.iter().find(|one| one["name"] == name);
    found.and_then(|one| one["admit"].as_u64()).unwrap_or(0)
}

/// Puts a node out; nobody says that they have heard it, for none of them is reached.
fn put_out(at: &Member, name: &str) {
    at.node.refused(&["peers", "remove", name], UNAVAILABLE);
}

/// A capability that can carry what a node hears and do nothing else.
fn may_share(member: &Member) {
    let node = &member.node;
    node.ok(&["image", "keygen", "share.key"]);
    let operator = node.directory().join("operator/operator.cap");
    let operator = operator.to_str().unwrap();
    let delegate = ["cap", "delegate", operator, "--as", operator, "--entry", "network"];
    let limits = ["--rights", "read,write", "--to", "share.pub", "--out", "share.cap"];
    node.ok(&[&delegate[..], &limits].concat());
}

fn share_words(store: &Store, endpoints: &[usize]) -> Vec<String> {
    let mut words: Vec<String> =
        ["network", "share", "--as", "share.cap"].map(str::to_owned).to_vec();
    for member in endpoints {
        words.extend(["--etcd".to_owned(), store.endpoint(*member)]);
    }
    let files = [("--ca", "ca.pem"), ("--cert", "client.pem"), ("--key", "client-key.pem")];
    words.extend(files.into_iter().flat_map(|(name, file)| [name.to_owned(), store.text(file)]));
    words
}

/// `distos network share` of a node, which asks these members of the store.
fn share(member: &Member, store: &Store, endpoints: &[usize]) -> Watched {
    let mut command = Command::new(distos());
    command.args(share_words(store, endpoints)).current_dir(member.node.work());
    let mut sharing = Watched::spawn(command);
    let begun = Instant::now();
    while !sharing.text().contains("is carried to etcd") {
        assert!(begun.elapsed() < VOUCHED, "{}", sharing.text());
        assert!(sharing.run_for(Duration::from_millis(20)), "it ended: {}", sharing.text());
    }
    sharing
}

/// Waits until it complains of something that it had not complained of when it had said `before`.
fn complains(sharing: &mut Watched, before: usize, what: &str) {
    let begun = Instant::now();
    loop {
        let said = sharing.complaints();
        if said[before..].contains(what) {
            return;
        }
        assert!(begun.elapsed() < HEARD, "it does not say {what:?}: {said}");
        assert!(sharing.run_for(Duration::from_millis(50)), "it ended: {said}");
    }
}

fn said(sharing: &Watched) -> usize {
    sharing.complaints().len()
}

fn end(sharing: Watched) {
    sharing.signal(Signal::INT);
    sharing.finish(COMMAND_TIMEOUT);
}

#[test]
fn nodes_that_reach_one_another_nowhere_else_agree_by_what_a_store_carries() {
    let (desk, mut store) = (Desk::set_up(), Store::start());
    let members = voters(&desk);
    let [one, two, three] = &members[..] else { panic!("three") };
    members.iter().for_each(may_share);
    // It can carry, and nothing else.
    one.node.refused(&["peers", "add", &stranger(1), "--as", "share.cap"], DENIED);
    let mut open = share_words(&store, &[0]);
    open[5] = open[5].replace("https", "http");
    let open: Vec<&str> = open.iter().map(String::as_str).collect();
    one.node.refused(&open, MALFORMED);

    let mut sharing: Vec<Watched> =
        members.iter().enumerate().map(|(at, member)| share(member, &store, &[at])).collect();
    one.node.ok(&["network", "configure", &desk.text("configuration.json")]);
    for other in [two, three] {
        eventually("all go by the configuration that one was told", HEARD, || {
            let status = other.node.json(&["network", "status"]);
            (status["configuration"]["number"] == 1).then_some(())
        });
    }
    one.node.ok(&["peers", "add", &stranger(1)]);
    two.node.ok(&["peers", "add", &stranger(1)]);
    let all_let_in = |name: &str| {
        eventually("two voters are for it, and all let it in", HEARD, || {
            members.iter().all(|member| lets_in(member, name)).then_some(())
        });
    };
    all_let_in(&stranger(1));

    // What somebody ends whose home it does not reach is carried there all the same.
    let home = &three.node;
    home.tenants(&["red", "blue"]);
    std::fs::write(home.file("text"), "so few words").unwrap();
    home.ok(&["region", "put", "words", "text", "--as", "red.cap", "--out", "words.cap"]);
    let delegate = ["cap", "delegate", "words.cap", "--as", "red.cap", "--to", "blue.pub"];
    home.ok(&[&delegate[..], &["--out", "lent.cap"]].concat());
    home.ok(&["cap", "redeem", "lent.cap", "--as", "blue.cap"]);
    let through = one.node.directory().join("operator/operator.cap");
    let revoke = ["cap", "revoke", "lent.cap", "--as", "red.cap", "--through"];
    let told = home.json(&[&revoke[..], &[through.to_str().unwrap()]].concat());
    assert_eq!(told[0]["ended"], false, "{told}");
    eventually("it has ended at its home", HEARD, || {
        (home.cli(&["cap", "redeem", "lent.cap", "--as", "blue.cap"]).code == REVOKED).then_some(())
    });

    // Without one member the others go on, and whoever asks that one hears when it is back.
    let before = said(&sharing[0]);
    store.kill(0);
    two.node.ok(&["peers", "add", &stranger(2)]);
    three.node.ok(&["peers", "add", &stranger(2)]);
    eventually("the others hear one another", HEARD, || {
        (lets_in(two, &stranger(2)) && lets_in(three, &stranger(2))).then_some(())
    });
    complains(&mut sharing[0], before, "the store is away");
    let before = said(&sharing[0]);
    put_out(one, &stranger(1));
    assert!(!lets_in(one, &stranger(2)) && lets_in(two, &stranger(1)));
    store.restart(0);
    all_let_in(&stranger(2));
    eventually("and is heard itself", HEARD, || {
        members.iter().all(|member| !lets_in(member, &stranger(1))).then_some(())
    });
    complains(&mut sharing[0], before, "both answer again");

    // Without two nothing is heard, and nothing lost.
    let before = said(&sharing[2]);
    store.kill(1);
    store.kill(2);
    two.node.ok(&["peers", "add", &stranger(3)]);
    one.node.ok(&["peers", "add", &stranger(3)]);
    complains(&mut sharing[2], before, "the store is away");
    std::thread::sleep(NOT_HEARD);
    assert_eq!(votes(three, &stranger(3)), 0);
    // Nor by whoever was ended meanwhile.
    sharing[1].signal(Signal::KILL);
    sharing.remove(1).finish(COMMAND_TIMEOUT);
    let two_shares = share(two, &store, &[1, 2]);
    store.restart(1);
    store.restart(2);
    all_let_in(&stranger(3));
    end(two_shares);

    // Whoever gave it takes it back.
    let operator = one.node.directory().join("operator/operator.cap");
    one.node.ok(&["cap", "revoke", "share.cap", "--as", operator.to_str().unwrap()]);
    let ended = sharing.remove(0).finish(COMMAND_TIMEOUT);
    assert_eq!(ended.code, REVOKED, "{}", ended.stderr);
    for rest in sharing {
        end(rest);
    }
}

/// What is in the store, as whoever may write to it sees it.
async fn raw(store: &Store, member: usize) -> Client {
    let read = |name: &str| std::fs::read(store.file(name)).unwrap();
    let own = Identity::from_pem(read("client.pem"), read("client-key.pem"));
    let tls = TlsOptions::new().ca_certificate(Certificate::from_pem(read("ca.pem"))).identity(own);
    let options = ConnectOptions::new().with_tls(tls);
    Client::connect([store.endpoint(member)], Some(options)).await.unwrap()
}

fn wait<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let in_time = async { tokio::time::timeout(HEARD, work).await };
    runtime.block_on(in_time).expect("etcd answers")
}

type Entries = Vec<(Vec<u8>, Vec<u8>)>;

async fn entries(client: &Client) -> Entries {
    let mut keys = client.kv_client().max_decoding_message_size(64 << 20);
    let all = keys.get("/distos/", Some(GetOptions::new().with_prefix())).await.unwrap();
    all.kvs().iter().map(|one| (one.key().to_vec(), one.value().to_vec())).collect()
}

#[test]
fn a_store_that_is_cut_in_two_or_written_to_by_others_changes_nobodys_mind() {
    let (desk, store) = (Desk::set_up(), Store::start());
    let members = voters(&desk);
    let [one, two, three] = &members[..] else { panic!("three") };
    members.iter().for_each(may_share);
    // The first asks one member alone; the second goes on to the next; the third is not there yet.
    let mut first = share(one, &store, &[0]);
    let second = share(two, &store, &[0, 1, 2]);
    one.node.ok(&["network", "configure", &desk.text("configuration.json")]);
    one.node.ok(&["peers", "add", &stranger(1)]);
    eventually("the second hears of the first", HEARD, || {
        (votes(two, &stranger(1)) == 1).then_some(())
    });

    // That member is cut off from the others, and still reached: it says nothing for them and hears nothing.
    let before = said(&first);
    store.cut(0);
    complains(&mut first, before, "the store is away");
    one.node.ok(&["peers", "add", &stranger(2)]);
    two.node.ok(&["peers", "add", &stranger(1)]);
    let third = share(three, &store, &[2]);
    eventually("the greater side goes on", HEARD, || lets_in(three, &stranger(1)).then_some(()));
    std::thread::sleep(NOT_HEARD);
    assert!(!lets_in(one, &stranger(1)), "the smaller one has heard it");
    assert_eq!([two, three].map(|member| votes(member, &stranger(2))), [0, 0]);
    store.mend(0);
    eventually("both hear one another", HEARD, || {
        let all = [two, three].iter().all(|member| votes(member, &stranger(2)) == 1);
        (all && lets_in(one, &stranger(1))).then_some(())
    });

    // Somebody brings up what was said before, says something in others' names, and removes the rest.
    let before = wait(async { entries(&raw(&store, 1).await).await });
    let name = |entry: &(Vec<u8>, Vec<u8>)| String::from_utf8(entry.0.clone()).unwrap();
    let of = |voter: &Member, about: u8| {
        let end = format!("vote/{}/{}", voter.number, hex::encode([about; 32]));
        before.iter().find(|entry| name(entry).ends_with(&end)).cloned().unwrap()
    };
    let old = of(one, 2);
    put_out(one, &stranger(2));
    let removed = |member: &Member| {
        let peers = member.node.json(&["peers", "list"]);
        let peers = peers["peers"].as_array().unwrap();
        peers.iter().any(|peer| peer["name"] == stranger(2) && peer["remove"] == 1)
    };
    eventually("all hear it", HEARD, || members.iter().all(removed).then_some(()));
    wait(async {
        let mut client = raw(&store, 1).await;
        client.put(old.0.clone(), old.1, None).await.unwrap();
        let configuration = before.iter().find(|one| name(one).ends_with("configuration")).unwrap();
        let text = String::from_utf8(configuration.1.clone()).unwrap();
        let forged = text.replacen("\"admit\": 2", "\"admit\": 1", 1);
        let forged = forged.replacen("\"number\": 1", "\"number\": 9", 1);
        assert_ne!(forged, text);
        client.put(configuration.0.clone(), forged, None).await.unwrap();
        client.put(of(two, 1).0, "nothing", None).await.unwrap();
        // More than one answer holds.
        for name in 0..4 {
            let name = format!("/distos/demo.example/vote/{name}");
            client.put(name, vec![7; 1_400_000], None).await.unwrap();
        }
    });
    // Also by whoever begins only now.
    end(first);
    let first = share(one, &store, &[0]);
    let mended = |what: &str| {
        eventually(what, HEARD, || {
            let now = wait(async { entries(&raw(&store, 2).await).await });
            let is_there = |entry: &(Vec<u8>, Vec<u8>)| {
                now.iter().any(|(key, value)| {
                    // What has changed since is what all have heard last.
                    *key == entry.0 && (*value == entry.1) == (*key != old.0)
                })
            };
            before.iter().all(is_there).then_some(())
        });
    };
    mended("what was spoilt is written again");
    assert!(members.iter().all(removed) && members.iter().all(|at| lets_in(at, &stranger(1))));
    for member in &members {
        let status = member.node.json(&["network", "status"]);
        assert_eq!(status["configuration"]["number"], 1);
    }
    wait(async {
        let all = Some(DeleteOptions::new().with_prefix());
        let removed = raw(&store, 0).await.delete("/distos/", all).await.unwrap();
        assert!(removed.deleted() >= before.len() as i64, "{removed:?}");
    });
    mended("what was removed is written again");
    for sharing in [first, second, third] {
        end(sharing);
    }
    // Whoever the store does not know is not let in.
    let mut words = share_words(&store, &[0]);
    for word in &mut words {
        *word = word.replace("client", "stranger");
    }
    let mut command = Command::new(distos());
    command.args(&words).current_dir(one.node.work());
    let mut refused = Watched::spawn(command);
    complains(&mut refused, 0, "the store is away");
    // As TLS has it, it may not hear why: whoever is known finds the same member there meanwhile.
    let mut known = share(one, &store, &[0]);
    assert!(known.run_for(Duration::from_secs(4)), "it ended");
    // Unless the members have lost one another meanwhile.
    if !known.complaints().is_empty() {
        complains(&mut known, 0, "both answer again");
    }
    assert!(!refused.complaints().contains("both answer again"));
    end(known);
    end(refused);
}
