//! What a certificate chain promises to a kernel that redeems it and to the people who pass it on.
#![allow(clippy::unwrap_used)]

use distos_abi::{
    Authority, ByteRange, CapId, Caveats, Fault, HolderKey, MAX_CHAIN_LINKS, NodeId, ObjectId,
    Rights, VatName,
};
use distos_types::{CapEntry, CapFile, Chain, HolderSecret, Root, kind};
use proptest::prelude::*;

const NOW_MS: u64 = 1_000;

fn secret(seed: u8) -> HolderSecret {
    HolderSecret::from_seed([seed; 32])
}

fn kernel() -> HolderSecret {
    secret(200)
}

fn kernel_keys(epoch: u32) -> Option<NodeId> {
    (epoch == 3).then(|| NodeId(kernel().key().0))
}

fn root(holder: HolderKey, authority: Authority) -> Root {
    Root {
        node: NodeId(kernel().key().0),
        key_epoch: 3,
        vat: VatName::new("memory").unwrap(),
        kind: kind::REGION,
        object: ObjectId(7),
        cap: CapId(9),
        holder,
        authority,
        nonce: [5; 16],
    }
}

/// Issued to holder 0, delegated to holders 1, 2, …, once for each authority.
fn chain_of(first: Authority, wanted: &[Authority]) -> Result<Chain, Fault> {
    let start = Chain::issue(root(secret(0).key(), first), &kernel());
    wanted.iter().zip(1u8..).try_fold(start, |chain, (wanted, n)| {
        chain.delegate(&secret(n - 1), secret(n).key(), *wanted, [n; 16])
    })
}

fn read_only() -> Authority {
    Authority {
        rights: Rights::READ,
        caveats: Caveats {
            expires_ms: 60_000,
            range: ByteRange { start: 0, end: 65_536 },
            ..Caveats::NONE
        },
    }
}

fn three_links() -> Chain {
    chain_of(Authority::FULL, &[Authority::FULL, read_only()]).unwrap()
}

fn any_authority() -> impl Strategy<Value = Authority> {
    let caveats = (any::<u64>(), any::<[u64; 2]>(), any::<u64>(), any::<u32>(), any::<u32>());
    (any::<u64>(), caveats).prop_map(|(rights, (expires_ms, ends, bytes, tasks, rate))| Authority {
        // The last bit is no right's.
        rights: Rights(rights >> 1),
        caveats: Caveats {
            expires_ms: expires_ms.max(NOW_MS + 1),
            range: ByteRange { start: ends[0], end: ends[1] },
            quota_bytes: bytes,
            quota_tasks: tasks,
            rate_per_s: rate,
            end_to_end: tasks % 2 == 0,
        },
    })
}

/// Authorities of which each has no rights beyond the one before.
fn shrinking() -> impl Strategy<Value = Vec<Authority>> {
    prop::collection::vec(any_authority(), 1..=MAX_CHAIN_LINKS).prop_map(|mut list| {
        for i in 1..list.len() {
            list[i].rights = list[i].rights.meet(list[i - 1].rights);
        }
        list
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_chain_that_is_sent_arrives_unchanged_and_verifies(list in shrinking()) {
        let chain = chain_of(list[0], &list[1..]).unwrap();
        let bytes = chain.encode();
        let again = Chain::decode(&bytes).unwrap();
        prop_assert_eq!(&again, &chain);
        prop_assert_eq!(again.encode(), bytes);
        prop_assert_eq!(again.verify(kernel_keys, NOW_MS), Ok(()));
        prop_assert_eq!(again.links().len(), list.len());
    }

    #[test]
    fn no_delegation_gives_more_than_its_giver_had_c1(list in shrinking()) {
        let chain = chain_of(list[0], &list[1..]).unwrap();
        let links = chain.links();
        for pair in links.windows(2) {
            prop_assert!(pair[1].authority.is_within(pair[0].authority));
            prop_assert_eq!(pair[1].issuer, pair[0].holder);
        }
        prop_assert_eq!(links.last().unwrap().authority, chain.authority());
        prop_assert_eq!(links.last().unwrap().holder, chain.holder());
    }

    #[test]
    fn a_strangers_bytes_never_panic_the_decoder(
        bytes in prop::collection::vec(any::<u8>(), 0..600),
        text in "\\PC{0,200}",
    ) {
        if let Ok(chain) = Chain::decode(&bytes) {
            prop_assert_eq!(chain.encode(), bytes);
        }
        prop_assert!(CapFile::parse(&text).is_err());
    }
}

#[test]
fn a_chain_with_any_bit_flipped_is_refused() {
    let bytes = three_links().encode();
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let accepted =
            Chain::decode(&damaged).and_then(|chain| chain.verify(kernel_keys, NOW_MS)).is_ok();
        assert!(!accepted, "bit {bit} may be flipped");
    }
}

#[test]
fn a_truncated_or_padded_chain_is_refused() {
    let bytes = three_links().encode();
    for len in 0..bytes.len() {
        assert!(matches!(Chain::decode(&bytes[..len]), Err(Fault::Malformed(_))), "{len} bytes");
    }
    let padded = [bytes.as_slice(), &[0]].concat();
    assert!(matches!(Chain::decode(&padded), Err(Fault::Malformed(_))));
    assert!(matches!(Chain::decode(&[1; 5000]), Err(Fault::Malformed(_))));
}

#[test]
fn a_holder_cannot_drop_the_links_that_limit_it() {
    let chain = three_links();
    let mut shorter = chain.encode();
    shorter.truncate(shorter.len() - 193);
    shorter[1] -= 1;
    let shorter = Chain::decode(&shorter).unwrap();
    // It verifies, as it is the giver's own chain; but it is the giver's key that it is bound to.
    assert_eq!(shorter.verify(kernel_keys, NOW_MS), Ok(()));
    assert_eq!(shorter.holder(), secret(1).key());

    let mut spliced = chain.encode();
    let middle = spliced.len() - 2 * 193..spliced.len() - 193;
    spliced.drain(middle);
    spliced[1] -= 1;
    let fault = Chain::decode(&spliced).unwrap().verify(kernel_keys, NOW_MS).unwrap_err();
    assert_eq!(fault.name(), "unauthenticated");
}

#[test]
fn another_kernels_chain_or_an_unknown_epoch_is_unauthenticated() {
    let chain = three_links();
    let other = |_| Some(NodeId(secret(201).key().0));
    assert_eq!(chain.verify(other, NOW_MS).unwrap_err().name(), "unauthenticated");
    assert_eq!(chain.verify(|_| None, NOW_MS).unwrap_err().name(), "unauthenticated");
}

#[test]
fn a_thief_of_a_chain_cannot_delegate_it_c4() {
    let chain = three_links();
    let fault = chain.delegate(&secret(77), secret(77).key(), read_only(), [0; 16]).unwrap_err();
    assert_eq!(fault.name(), "unauthenticated");
    let fault = chain.delegate(&secret(1), secret(1).key(), read_only(), [0; 16]).unwrap_err();
    assert_eq!(fault.name(), "unauthenticated");
}

#[test]
fn a_delegation_beyond_ones_rights_is_denied_by_name() {
    let fault = chain_of(read_only(), &[Authority::FULL]).unwrap_err();
    assert_eq!(fault, Fault::denied(Rights::ALL.minus(Rights::READ)));
}

#[test]
fn a_forged_link_with_more_rights_is_denied_though_its_signature_is_good() {
    // Holder 1 signs, under a one-link chain of its own making, a link that its real chain does
    // not allow. The bytes are put under the real root by recomputing nothing: the hash differs.
    let strong = chain_of(Authority::FULL, &[Authority::FULL]).unwrap().encode();
    let weak = chain_of(read_only(), &[]).unwrap().encode();
    let forged = [&[1, 2], &weak[2..], &strong[strong.len() - 193..]].concat();
    let fault = Chain::decode(&forged).unwrap().verify(kernel_keys, NOW_MS).unwrap_err();
    assert_eq!(fault.name(), "unauthenticated");

    // With the right hash and a good signature, the rights themselves are what is refused.
    let parent = chain_of(read_only(), &[]).unwrap();
    let mut body = strong[strong.len() - 193..strong.len() - 64].to_vec();
    body[1..33].copy_from_slice(&parent.links()[0].hash.0);
    let signature = secret(0).sign(&[b"distos-link-v1".as_slice(), &body].concat());
    let forged = [&[1, 2], &weak[2..], &body, &signature].concat();
    let forged = Chain::decode(&forged).unwrap();
    let fault = forged.verify(kernel_keys, NOW_MS).unwrap_err();
    assert_eq!(fault, Fault::denied(Rights::ALL.minus(Rights::READ)));
    assert_eq!(forged.authority().rights, Rights::READ);
}

#[test]
fn an_expired_link_ends_all_below_it() {
    let mut brief = read_only();
    brief.caveats.expires_ms = 500;
    let chain = chain_of(Authority::FULL, &[brief, read_only()]).unwrap();
    assert_eq!(chain.verify(kernel_keys, 499), Ok(()));
    assert_eq!(chain.verify(kernel_keys, 500), Err(Fault::Expired { at_ms: 500 }));
}

#[test]
fn a_chain_ends_at_eight_links() {
    let full = [Authority::FULL; MAX_CHAIN_LINKS];
    let longest = chain_of(Authority::FULL, &full[1..]).unwrap();
    assert_eq!(longest.verify(kernel_keys, NOW_MS), Ok(()));
    assert!(Chain::decode(&longest.encode()).is_ok());
    assert_eq!(chain_of(Authority::FULL, &full), Err(Fault::TooDeep));
    let mut nine = longest.encode();
    nine[1] = 9;
    nine.extend([0; 193]);
    assert!(matches!(Chain::decode(&nine), Err(Fault::Malformed(_))));
}

#[test]
fn an_empty_range_has_one_encoding() {
    let mut odd = read_only();
    odd.caveats.range = ByteRange { start: 9, end: 3 };
    let chain = chain_of(odd, &[odd]).unwrap();
    assert_eq!(Chain::decode(&chain.encode()).as_ref(), Ok(&chain));
    assert_eq!(chain.verify(kernel_keys, NOW_MS), Ok(()));
}

fn cap_file() -> CapFile {
    CapFile {
        node: NodeId(kernel().key().0),
        sockets: Some("/run/distos with blanks/ü".to_owned()),
        entries: vec![
            CapEntry { name: "regions".to_owned(), chain: three_links() },
            CapEntry { name: "page-3".to_owned(), chain: chain_of(read_only(), &[]).unwrap() },
        ],
    }
}

#[test]
fn a_capability_file_survives_mail_and_other_systems_line_ends() {
    let file = cap_file();
    let text = file.to_text();
    assert_eq!(CapFile::parse(&text).as_ref(), Ok(&file));
    assert_eq!(CapFile::parse(&text.replace('\n', "\r\n")).as_ref(), Ok(&file));
    assert_eq!(CapFile::parse(&format!("{text}\n\n")).as_ref(), Ok(&file));
    assert!(text.lines().skip(4).all(|line| line.len() <= 76));
    assert_eq!(file.find("page-3").unwrap().chain.links().len(), 1);
    assert_eq!(file.find("absent"), None);
    let bare = CapFile { sockets: None, entries: Vec::new(), ..file };
    assert_eq!(CapFile::parse(&bare.to_text()), Ok(bare));
}

#[test]
fn a_truncated_capability_file_is_called_that_and_never_accepted() {
    let text = cap_file().to_text();
    let whole = text.trim_end().len();
    for len in (0..whole).filter(|len| text.is_char_boundary(*len)) {
        assert!(CapFile::parse(&text[..len]).is_err(), "{len} bytes");
    }
    let cut = CapFile::parse(&text[..whole - 90]).unwrap_err();
    assert!(cut.to_wire().contains("truncated"), "{cut:?}");
}

#[test]
fn a_damaged_capability_file_is_never_accepted() {
    let text = cap_file().to_text();
    for at in 0..text.trim_end().len() {
        let mut damaged = text.clone().into_bytes();
        damaged[at] ^= 1;
        let accepted = String::from_utf8(damaged).is_ok_and(|text| CapFile::parse(&text).is_ok());
        assert!(!accepted, "byte {at}");
    }
}

/// The text with a good check, as somebody who edits on purpose would make it.
fn with_check(body: &str) -> String {
    format!("{body}check: {}\n", blake3::hash(body.as_bytes()))
}

#[test]
fn a_broken_capability_file_is_refused_with_line_and_advice() {
    let good = cap_file().to_text();
    let body = good.split("check: ").next().unwrap().to_owned();
    let many: String = (0..33).map(|i| format!("[e{i}]\n")).collect();
    let head: String = body.lines().take(2).map(|line| format!("{line}\n")).collect();
    let alien = head.replace(&kernel().key().to_string(), &secret(1).key().to_string());
    let entry: String = body.lines().skip(3).map(|line| format!("{line}\n")).collect();
    for (text, says) in [
        (String::new(), "line 1: this is no capability file"),
        ("\u{7f}ELF".to_owned(), "line 1: this is no capability file"),
        (good.replace("file v1", "file v2"), "install the newer one"),
        (with_check("distos capability file v1\nnode: 12\n"), "line 2"),
        (with_check(&format!("{head}abcd\n")), "line 3: expected \"[NAME]\""),
        (with_check(&format!("{head}[a]\nxyz\n")), "line 4: expected hexadecimal"),
        (with_check(&format!("{head}[a]\n[a]\n")), "line 4: the name a occurs twice"),
        (with_check(&format!("{head}[a b]\n")), "line 3: a capability's name"),
        (with_check(&format!("{head}[a]\nabc\n")), "line 3: the capability a"),
        (
            with_check(&format!("{head}[a]\n{}\n", "0".repeat(9000))),
            "line 4: the capability a is too long",
        ),
        (with_check(&format!("{head}{many}")), "more than 32"),
        (with_check(&format!("{alien}{entry}")), "another node"),
        (format!("{good}more\n"), "nothing may follow"),
        (body.clone(), "truncated: the check line is missing"),
        (good.replace("page-3", "page-4"), "its check does not match"),
        ("x".repeat(70_000), "too long"),
    ] {
        let fault = CapFile::parse(&text).unwrap_err();
        assert_eq!(fault.name(), "malformed");
        assert!(fault.to_wire().contains(says), "{says}: {}", fault.to_wire());
    }
}

#[test]
fn a_name_or_path_cannot_smuggle_lines_into_a_capability_file() {
    let mut file = cap_file();
    file.sockets = Some("/run\n[other]".to_owned());
    file.entries.truncate(1);
    file.entries[0].name = "a]\n[b".to_owned();
    let read = CapFile::parse(&file.to_text()).unwrap();
    assert_eq!(read.sockets, None);
    assert_eq!(read.entries[0].name, "a___b");
    assert_eq!(read.entries[0].chain, file.entries[0].chain);
}
