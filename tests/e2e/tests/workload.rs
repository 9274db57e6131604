//! Programs that know SPIFFE and nothing of DistOS: an ordinary client of the Workload API gets what it needs from
//! a tenant who may be an agent, and nothing from anybody else.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use distos_e2e::cluster::{Desk, Member, VOUCHED};
use distos_e2e::watch::Watched;
use distos_e2e::{COMMAND_TIMEOUT, Node, distos};
use futures::StreamExt as _;
use spiffe::{JwtSvid, WorkloadApiClient, X509Context};

const REVOKED: i32 = 11;
const DENIED: i32 = 10;
const EXPIRED: i32 = 12;
const MALFORMED: i32 = 16;
const UNAVAILABLE: i32 = 17;
const UNAUTHENTICATED: i32 = 22;
const SHOP: &str = "https://shop.example";

/// A node with red, whose agent `shop` has a key of its own.
fn shop(svid_s: u32) -> (Desk, Member) {
    let desk = Desk::set_up();
    let member = Member::join(&desk, svid_s);
    let node = &member.node;
    node.tenants(&["red", "blue"]);
    node.ok(&["image", "keygen", "shop.key"]);
    node.ok(&delegate("shop", &[]));
    (desk, member)
}

/// Red makes whoever has that key an agent of its own.
fn delegate<'a>(name: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let (public, cap) = match name {
        "shop" => ("shop.pub", "shop.cap"),
        _ => ("till.pub", "till.cap"),
    };
    let words = ["cap", "delegate", "red.cap", "--as", "red.cap", "--entry", "agents"];
    [&words[..], &["--to", public, "--out", cap], more].concat()
}

/// `distos workload serve` for shop; its socket.
fn serve(node: &Node) -> (Watched, String) {
    let socket = node.file("shop.sock");
    let listen = format!("unix:{}", socket.display());
    let mut command = Command::new(distos());
    command.args(["workload", "serve", "--as", "shop.cap", "--listen", &listen]);
    command.current_dir(node.work());
    let mut serving = Watched::spawn(command);
    let begun = Instant::now();
    while !serving.text().contains("whoever connects") {
        assert!(begun.elapsed() < VOUCHED, "{}", serving.text());
        assert!(serving.run_for(Duration::from_millis(20)), "it ended: {}", serving.text());
    }
    (serving, format!("unix://{}", socket.display()))
}

fn wait<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let in_time = async { tokio::time::timeout(Duration::from_secs(60), work).await };
    runtime.block_on(in_time).expect("it is answered")
}

/// The next that another client is told, or that it is told no more.
async fn next(
    updates: &mut (impl futures::Stream<Item = Result<X509Context, spiffe::WorkloadApiError>> + Unpin),
) -> Option<X509Context> {
    updates.next().await.and_then(Result::ok)
}

#[test]
fn an_ordinary_spiffe_client_gets_its_identity_and_keeps_it_while_it_may() {
    let (desk, member) = shop(6);
    let node = &member.node;
    member.vouch_for_tokens(&desk);
    let (mut serving, endpoint) = serve(node);
    wait(async {
        let client = WorkloadApiClient::connect_to(&endpoint).await.unwrap();
        let mut updates = Box::pin(client.stream_x509_contexts().await.unwrap());
        let first = next(&mut updates).await.expect("an identity");
        let svid = first.default_svid().unwrap();
        let id = svid.spiffe_id().to_string();
        assert!(id.starts_with("spiffe://demo.example/tenant/red/agent/z6Mk"), "{id}");
        assert_eq!(svid.cert_chain().len(), 2);
        let domain = svid.spiffe_id().trust_domain();
        let roots = client.fetch_x509_bundles().await.unwrap();
        assert_eq!(roots.get(domain).unwrap().authorities().len(), 1);

        // Tokens: made here, and checked by what another library makes of the bundle.
        let token = client.fetch_jwt_token([SHOP, "other"], None).await.unwrap();
        let bundles = client.fetch_jwt_bundles().await.unwrap();
        let read = JwtSvid::parse_and_validate(&token, &bundles, &[SHOP]).unwrap();
        assert_eq!(read.spiffe_id().to_string(), id);
        assert!(JwtSvid::parse_and_validate(&token, &bundles, &["https://shop"]).is_err());
        // Another signature of the same form.
        let at = token.len() - 40;
        let other = if token.as_bytes()[at] == b'A' { "B" } else { "A" };
        let forged = format!("{}{other}{}", &token[..at], &token[at + 1..]);
        assert!(JwtSvid::parse_and_validate(&forged, &bundles, &[SHOP]).is_err());
        let found = client.validate_jwt_token(SHOP, &token).await.unwrap();
        assert_eq!(found.spiffe_id().to_string(), id);
        assert!(client.validate_jwt_token("else", &token).await.is_err());
        assert!(client.validate_jwt_token(SHOP, &forged).await.is_err());
        std::fs::write(node.file("token"), token.as_str()).unwrap();

        // It is renewed when half of its time is over, for the same agent with the same key.
        let second = next(&mut updates).await.expect("a newer one");
        let newer = second.default_svid().unwrap();
        assert_eq!(newer.spiffe_id(), svid.spiffe_id());
        assert_ne!(newer.leaf(), svid.leaf());
        assert_eq!(newer.private_key(), svid.private_key());

        // Red takes it back: nothing is signed any more, and the client is told.
        node.ok(&["cap", "revoke", "shop.cap", "--as", "red.cap"]);
        assert!(client.fetch_jwt_token([SHOP], None).await.is_err());
        while next(&mut updates).await.is_some() {}
        assert!(client.fetch_x509_svid().await.is_err());
    });
    // What an auditor finds out with the bundle alone.
    let (token, bundle) = (node.file("token"), desk.text("bundle.json"));
    let check = |audience: &str, more: &[&str]| {
        let token = token.to_str().unwrap();
        let words = ["cluster", "token", token, "--audience", audience, "--bundle", &bundle];
        node.cli(&[&words[..], more].concat())
    };
    assert_eq!(check(SHOP, &[]).code, 0, "{}", check(SHOP, &[]).stderr);
    assert_eq!(check("else", &[]).code, UNAUTHENTICATED);
    assert_eq!(check(SHOP, &["--at", "2099-01-01T00:00:00Z"]).code, EXPIRED);
    let refused = node.cli(&["workload", "svid", "--as", "shop.cap"]);
    assert_eq!(refused.code, REVOKED, "{}", refused.stderr);
    assert!(serving.run_for(Duration::ZERO), "it goes on: {}", serving.text());
    serving.signal(rustix::process::Signal::TERM);
    serving.finish(COMMAND_TIMEOUT);
    assert!(!Path::new(&node.file("shop.sock")).exists());
}

#[test]
fn nobody_is_an_agent_whom_the_tenant_did_not_make_one() {
    let (desk, member) = shop(3600);
    let node = &member.node;
    let code = |args: &[&str]| node.cli(args).code;
    // Nobody would take a token before the bundle names this node's key.
    assert_eq!(code(&["workload", "token", SHOP, "--as", "shop.cap"]), UNAVAILABLE);
    member.vouch_for_tokens(&desk);
    assert_eq!(code(&["workload", "token", SHOP, "--as", "shop.cap"]), 0);
    // With another's key, with a capability to something else, and without a name.
    std::fs::copy(node.file("shop.cap"), node.file("stolen.cap")).unwrap();
    std::fs::copy(node.file("blue.key"), node.file("stolen.key")).unwrap();
    assert_eq!(code(&["workload", "token", SHOP, "--as", "stolen.cap"]), UNAUTHENTICATED);
    assert_ne!(code(&["workload", "svid", "--as", "red.cap", "--entry", "regions"]), 0);
    assert_eq!(code(&["workload", "token", "", "--as", "shop.cap"]), MALFORMED);
    // Blue's agents are blue's.
    let svid = node.json(&["workload", "svid", "--as", "blue.cap", "--out", "blue.pem"]);
    assert!(svid["id"].as_str().unwrap().contains("/tenant/blue/agent/"));
    // Red may pass on less: an identity, and no tokens.
    node.ok(&["image", "keygen", "till.key"]);
    node.ok(&delegate("till", &["--rights", "read", "--for", "5m"]));
    assert_eq!(code(&["workload", "token", SHOP, "--as", "till.cap"]), DENIED);
    let till = node.json(&["workload", "svid", "--as", "till.cap"]);
    let full = node.json(&["workload", "svid", "--as", "shop.cap"]);
    let until = |svid: &serde_json::Value| svid["until_s"].as_u64().unwrap();
    assert!(until(&till) + 3000 < until(&full), "it holds no longer than its capability");
    // Who serves an agent notices that it has ended, however long its SVID holds.
    let (mut serving, endpoint) = serve(node);
    node.ok(&["cap", "revoke", "shop.cap", "--as", "red.cap"]);
    wait(async {
        let client = WorkloadApiClient::connect_to(&endpoint).await.unwrap();
        let begun = Instant::now();
        while client.fetch_x509_svid().await.is_ok() {
            assert!(begun.elapsed() < Duration::from_secs(15), "it goes on to be an agent");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    assert!(serving.run_for(Duration::ZERO), "it goes on, to tell whoever asks");
    serving.signal(rustix::process::Signal::TERM);
    let said = serving.finish(COMMAND_TIMEOUT).stderr;
    assert!(said.contains("this agent has ended"), "{said}");
    // What was given to red ends with red's place, its agents too.
    node.ok(&["workload", "svid", "--as", "red.cap"]);
    node.ok(&["peers", "add", "tenant/red"]);
    node.ok(&["peers", "remove", "tenant/red"]);
    for ended in ["red.cap", "till.cap"] {
        assert_eq!(code(&["workload", "token", SHOP, "--as", ended]), REVOKED, "{ended}");
    }
    // The SVID is what `connect` shows: the file is where it looks for it.
    let checked = ["cluster", "verify", "till.pem", "--bundle", &desk.text("bundle.json")];
    assert_eq!(code(&checked), 0);
}
