//! Capabilities at rest: chains, capability files, key files.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use distos_abi::{
    Authority, ByteRange, CapId, Caveats, Fault, Kind, NodeId, ObjectId, Rights, VatName,
};
use distos_types::{CapEntry, CapFile, Chain, HolderSecret, Root, key_file_text, parse_key_file};

use super::seed;
use crate::Input;

const NOW_MS: u64 = 1_700_000_000_000;

fn secret(number: u8) -> HolderSecret {
    HolderSecret::from_seed([number; 32])
}

fn kernel() -> HolderSecret {
    secret(200)
}

fn node() -> NodeId {
    NodeId(kernel().key().0)
}

/// The key of epochs 1 and 2, as of a node that changed its key once and back.
fn kernel_key(epoch: u32) -> Option<NodeId> {
    (1..=2).contains(&epoch).then(node)
}

fn root(authority: Authority) -> Root {
    Root {
        node: node(),
        key_epoch: 1,
        vat: VatName::new("memory").unwrap(),
        kind: Kind(2),
        object: ObjectId(3),
        cap: CapId(4),
        holder: secret(1).key(),
        authority,
        nonce: [7; 16],
    }
}

/// Chains of 1 to 8 links; the holder of link n is `secret(n)`.
fn chains() -> Vec<Chain> {
    let mut chain = Chain::issue(root(Authority::FULL), &kernel());
    let mut chains = vec![chain.clone()];
    for number in 1..8u8 {
        let range = ByteRange { start: u64::from(number) * 100, end: 1 << 20 };
        let caveats = Caveats { range, expires_ms: NOW_MS + 1_000, ..Caveats::NONE };
        let wanted = Authority {
            rights: Rights::ALL.minus(Rights(1 << number)).meet(chain.authority().rights),
            caveats,
        };
        let to = secret(number + 1).key();
        chain = chain.delegate(&secret(number), to, wanted, [number; 16]).unwrap();
        chains.push(chain.clone());
    }
    chains
}

/// Everything that was ever signed with the keys above.
static SIGNED: LazyLock<BTreeSet<Vec<u8>>> =
    LazyLock::new(|| chains().iter().map(Chain::encode).collect());

pub(super) fn chain_seeds() -> Vec<(String, Vec<u8>)> {
    let some = [0, 1, 3, 7];
    some.iter().map(|n| seed(&format!("links-{}", n + 1), chains()[*n].encode())).collect()
}

/// What is accepted has one encoding; nobody makes a chain that verifies without its signers;
/// and whatever a holder delegates is within what it had (C1).
pub(super) fn chain(bytes: &[u8]) {
    if let Ok(chain) = Chain::decode(bytes) {
        assert_eq!(chain.encode(), bytes, "a chain has two encodings");
        let links = chain.links();
        assert_eq!(links.last().unwrap().holder, chain.holder());
        assert_eq!(Chain::decode(&chain.prefix(1).encode()), Ok(chain.prefix(1)));
        if chain.verify(kernel_key, NOW_MS).is_ok() {
            assert!(SIGNED.contains(bytes), "a chain verifies that nobody signed");
            let first = links[0].authority;
            assert!(links.iter().all(|link| link.authority.is_within(first)), "authority grew");
        }
    }
    delegations(&mut Input::new(bytes));
}

fn authority(input: &mut Input<'_>) -> Authority {
    let (start, len) = (input.u64(), input.u64());
    let caveats = Caveats {
        expires_ms: input.u64(),
        range: ByteRange { start, end: start.saturating_add(len) },
        quota_bytes: input.u64(),
        quota_tasks: input.u32(),
        rate_per_s: input.u32(),
        end_to_end: start & 1 == 1,
    };
    // Most rights are kept, or no chain would get long.
    Authority { rights: Rights::ALL.minus(Rights(1 << (input.u8() % 64))), caveats }
}

fn delegations(input: &mut Input<'_>) {
    let mut chain = Chain::issue(root(authority(input)), &kernel());
    let mut number = 1;
    while !input.is_empty() && number < 12 {
        let before = chain.authority();
        let mut wanted = authority(input);
        wanted.rights = wanted.rights.meet(before.rights);
        let by = if input.u8() == 255 { secret(99) } else { secret(number) };
        match chain.delegate(&by, secret(number + 1).key(), wanted, input.array()) {
            Ok(longer) => {
                assert!(longer.authority().is_within(before), "a delegation added authority");
                chain = longer;
                number += 1;
            }
            Err(Fault::Unauthenticated(_) | Fault::TooDeep) => break,
            Err(other) => panic!("a good delegation is refused: {other}"),
        }
    }
    assert_eq!(Chain::decode(&chain.encode()).as_ref(), Ok(&chain));
    match chain.verify(kernel_key, NOW_MS) {
        Ok(()) => assert!(chain.authority().caveats.expires_ms > NOW_MS),
        Err(Fault::Expired { at_ms }) => assert!(at_ms <= NOW_MS),
        Err(other) => panic!("a good chain is refused: {other}"),
    }
}

fn cap_file(chains: &[Chain]) -> CapFile {
    let entry =
        |(n, chain): (usize, &Chain)| CapEntry { name: format!("cap-{n}"), chain: chain.clone() };
    CapFile {
        node: node(),
        sockets: Some("/run/distos".into()),
        entries: chains.iter().enumerate().map(entry).collect(),
    }
}

pub(super) fn file_seeds() -> Vec<(String, Vec<u8>)> {
    let chains = chains();
    let bare = CapFile { sockets: None, ..cap_file(&[]) };
    vec![
        seed("empty", bare.to_text()),
        seed("one", cap_file(&chains[..1]).to_text()),
        seed("two", cap_file(&chains[..2]).to_text()),
        seed("windows", cap_file(&chains[..1]).to_text().replace('\n', "\r\n")),
    ]
}

/// A file with the check that its lines ask for, so that what stands behind the check is tried.
fn with_check(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let body = lines.iter().rposition(|line| line.starts_with("check: ")).unwrap_or(lines.len());
    let body: String = lines[..body].iter().map(|line| format!("{line}\n")).collect();
    let check = blake3::hash(body.as_bytes());
    format!("{body}check: {check}\n")
}

/// A refusal names a line that is there; what is accepted is written and read again as it was.
pub(super) fn file(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for text in [text.as_ref(), &with_check(&text)] {
        match CapFile::parse(text) {
            Ok(file) => {
                assert_eq!(CapFile::parse(&file.to_text()).as_ref(), Ok(&file), "{text}");
                assert!(file.entries.iter().all(|entry| file.find(&entry.name) == Some(entry)));
            }
            Err(fault) => check_line(&fault, text),
        }
    }
}

/// A fault of a file names one of its lines, or the one that is missing behind the last.
fn check_line(fault: &Fault, text: &str) {
    let wire = fault.to_wire();
    if wire.contains("too long for a capability file") {
        return;
    }
    let (_, rest) = wire.split_once(": line ").unwrap_or_else(|| panic!("no line: {wire}"));
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    let line: usize = digits.parse().unwrap_or_else(|_| panic!("no line: {wire}"));
    assert!((1..=text.lines().count() + 2).contains(&line), "{wire}: there is no such line");
}

pub(super) fn key_seeds() -> Vec<(String, Vec<u8>)> {
    vec![
        seed("public", key_file_text(secret(1).key())),
        seed("secret", secret(1).to_file_text().as_bytes()),
        seed("windows", key_file_text(secret(1).key()).replace('\n', "\r\n")),
    ]
}

/// A key that is accepted is the one that its file would be written with; no secret stands in a
/// fault; and no file is both public and secret.
pub(super) fn key(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (public, secret) = (parse_key_file(&text), HolderSecret::from_file_text(&text));
    assert!(public.is_err() || secret.is_err(), "a file is both a public and a secret key");
    if let Ok(key) = &public {
        assert_eq!(parse_key_file(&key_file_text(*key)), Ok(*key));
    }
    if let Ok(secret) = &secret {
        let again = HolderSecret::from_file_text(&secret.to_file_text()).unwrap();
        assert_eq!(again.key(), secret.key());
    }
    for fault in [public.err(), secret.err()].into_iter().flatten() {
        let wire = fault.to_wire();
        assert!(wire.contains("line") || wire.contains("key file"), "{wire}");
        assert!(!wire.contains(&"01".repeat(8)), "a fault repeats a part of a secret: {wire}");
    }
}
