use proptest::prelude::*;

use super::*;
use crate::findings::Outcome;

/// An entry as a test wants it.
#[derive(Clone, Debug)]
struct Made {
    template: &'static str,
    algorithm: &'static str,
    digest: Vec<u8>,
    path: Vec<u8>,
    extra: Option<Vec<u8>>,
    violation: bool,
}

fn file(path: &str, byte: u8) -> Made {
    Made {
        template: "ima-ng",
        algorithm: "sha256",
        digest: vec![byte; 32],
        path: path.into(),
        extra: None,
        violation: false,
    }
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_le_bytes()[..], bytes].concat()
}

impl Made {
    /// What is hashed: written down here from the kernel's documentation, apart from the code that is tested.
    fn template_data(&self) -> Vec<u8> {
        if self.template == "ima" {
            let mut name = self.path.clone();
            name.resize(256, 0);
            return [self.digest.clone(), name].concat();
        }
        let digest = [self.algorithm.as_bytes(), b":\0", &self.digest].concat();
        let mut data = [sized(&digest), sized(&[&self.path[..], b"\0"].concat())].concat();
        if let Some(extra) = &self.extra {
            data.extend(sized(extra));
        }
        data
    }

    fn template_hash(&self, bank: Bank) -> Digest {
        if self.violation { bank.filled(0) } else { bank.hash(&[&self.template_data()]) }
    }

    fn text(&self, bank: Bank) -> Vec<u8> {
        let digest = match self.template {
            "ima" => hex::encode(&self.digest),
            _ => format!("{}:{}", self.algorithm, hex::encode(&self.digest)),
        };
        let head = format!("10 {} {} {digest} ", self.template_hash(bank), self.template);
        let mut line = [head.as_bytes(), &self.path].concat();
        if let Some(extra) = &self.extra {
            line.extend(format!(" {}", hex::encode(extra)).into_bytes());
        }
        line.push(b'\n');
        line
    }

    fn binary(&self) -> Vec<u8> {
        let head = [
            &10u32.to_le_bytes()[..],
            self.template_hash(Bank::Sha1).as_bytes(),
            &sized(self.template.as_bytes()),
        ]
        .concat();
        let fields = match self.template {
            "ima" => [self.digest.clone(), sized(&self.path)].concat(),
            _ => sized(&self.template_data()),
        };
        [head, fields].concat()
    }

    /// What the kernel extends.
    fn extended(&self, extension: Extension) -> Vec<u8> {
        let bank = match extension {
            Extension::Sha256 => Bank::Sha256,
            Extension::Sha1 | Extension::Sha256Padded => Bank::Sha1,
        };
        let mut digest = match self.violation {
            true => vec![0xff; bank.size()],
            false => bank.hash(&[&self.template_data()]).as_bytes().to_vec(),
        };
        digest.resize(extension.bank().size(), 0);
        digest
    }
}

fn entries() -> Vec<Made> {
    vec![
        file("boot_aggregate", 1),
        file("/usr/bin/a file with spaces", 2),
        Made { template: "ima", algorithm: "sha1", digest: vec![3; 20], ..file("/init", 3) },
        Made { template: "ima-sig", extra: Some(vec![3, 2, 4]), ..file("/usr/bin/signed one", 4) },
        Made { template: "ima-sig", extra: Some(vec![]), ..file("/usr/bin/unsigned", 5) },
        Made { violation: true, digest: vec![0; 32], ..file("/var/log/wtmp", 0) },
        Made { template: "ima-ngv2", algorithm: "ima:sha256", ..file("/usr/bin/v2", 6) },
        Made {
            template: "ima-sigv2",
            algorithm: "verity:sha512",
            digest: vec![7; 64],
            extra: Some(vec![9]),
            ..file("/usr/bin/verity", 7)
        },
        Made { template: "ima-buf", extra: Some(b"quiet".to_vec()), ..file("kexec-cmdline", 8) },
    ]
}

fn list_of(entries: &[Made], form: Form) -> Vec<u8> {
    let write = |entry: &Made| match form {
        Form::Text => entry.text(Bank::Sha1),
        Form::Binary => entry.binary(),
    };
    entries.iter().flat_map(write).collect()
}

/// What the register holds after these entries.
fn register(entries: &[Made], extension: Extension) -> Vec<u8> {
    let bank = extension.bank();
    let extend = |value: Digest, entry: &Made| value.extended(bank, &entry.extended(extension));
    entries.iter().fold(bank.filled(0), extend).as_bytes().to_vec()
}

const EXTENSIONS: [Extension; 3] = [Extension::Sha1, Extension::Sha256, Extension::Sha256Padded];
const FORMS: [Form; 2] = [Form::Text, Form::Binary];

#[test]
fn every_template_replays_in_every_form_and_bank() {
    for form in FORMS {
        for extension in EXTENSIONS {
            let list = list_of(&entries(), form);
            let value = register(&entries(), extension);
            let start = Progress::new(form, extension);
            let advance = start.advance(&list, Some(&value)).unwrap();
            assert!(advance.vouched);
            assert_eq!(advance.progress.entries(), 9, "{form:?} {extension:?}");
            assert_eq!(advance.progress.violations(), 1);
            assert_eq!(advance.progress.offset(), list.len() as u64);
            assert_eq!(advance.progress.value().as_bytes(), value);
            let files: Vec<(String, bool)> = advance
                .files
                .iter()
                .map(|file| (format!("{file}")[..14].to_owned(), file.signed))
                .collect();
            assert_eq!(files.len(), 8, "the boot aggregate is no file");
            assert_eq!(files.iter().filter(|(_, signed)| *signed).count(), 2);
            let digests: Vec<String> =
                advance.files.iter().map(MeasuredFile::digest_text).collect();
            assert_eq!(digests[1], format!("sha1:{}", "03".repeat(20)));
            assert_eq!(digests[5], format!("sha256:{}", "06".repeat(32)));
            assert_eq!(digests[6], format!("verity:sha512:{}", "07".repeat(64)));
        }
    }
}

#[test]
fn a_list_with_sha256_template_hashes_replays() {
    let list: Vec<u8> = entries().iter().flat_map(|entry| entry.text(Bank::Sha256)).collect();
    for extension in EXTENSIONS {
        let start = Progress::new(Form::Text, extension);
        let value = register(&entries(), extension);
        assert_eq!(start.advance(&list, Some(&value)).unwrap().progress.entries(), 9);
    }
}

/// The kernel measures on while a quote is made: what is behind it is counted by the next one, not lost, and not twice.
#[test]
fn entries_behind_the_quote_are_left_for_the_next_one() {
    for form in FORMS {
        let all = entries();
        let list = list_of(&all, form);
        let mut progress = Progress::new(form, Extension::Sha256);
        let mut files = 0;
        for quoted in [0, 0, 3, 3, 7, 9, 9] {
            let part = &list[usize::try_from(progress.offset()).unwrap()..];
            let value = register(&all[..quoted], Extension::Sha256);
            let advance = progress.advance(part, Some(&value)).unwrap();
            assert_eq!(advance.progress.entries(), quoted as u64);
            assert_eq!(advance.bytes_behind, list_of(&all[quoted..], form).len());
            files += advance.files.len();
            let kept = serde_json::to_string(&advance.progress).unwrap();
            progress = serde_json::from_str(&kept).unwrap();
            assert_eq!(progress, advance.progress);
        }
        assert_eq!(files, 8);
    }
}

#[test]
fn a_quote_from_before_what_is_known_is_refused() {
    let all = entries();
    let list = list_of(&all, Form::Text);
    let value = |count| register(&all[..count], Extension::Sha1);
    let start = Progress::new(Form::Text, Extension::Sha1);
    let known = start.advance(&list, Some(&value(5))).unwrap().progress;
    let part = &list[usize::try_from(known.offset()).unwrap()..];
    let refusal = known.advance(part, Some(&value(3))).unwrap_err();
    assert_eq!(refusal, Refusal::Replay { entries: 9 });
}

#[test]
fn a_list_that_was_cut_or_changed_before_its_end_is_told() {
    let all = entries();
    let list = list_of(&all, Form::Text);
    let start = Progress::new(Form::Text, Extension::Sha256);
    let known = start.advance(&list, None).unwrap().progress;
    assert_eq!(known.rest_of(&list), Ok(&[][..]));
    let longer = [list.clone(), file("/new", 9).text(Bank::Sha1)].concat();
    assert_eq!(known.rest_of(&longer).unwrap(), file("/new", 9).text(Bank::Sha1));
    let cut = &list[..list.len() - 1];
    assert_eq!(known.rest_of(cut), Err(Refusal::Cut { has: cut.len(), known: list.len() as u64 }));
    // As long as before, and another file in it.
    let mut other = all;
    other[1].digest[0] ^= 1;
    let differs = Err(Refusal::Differs { entries: 9 });
    assert_eq!(known.rest_of(&list_of(&other, Form::Text)), differs);
    // An entry taken out, told only of the new part: no prefix of what remains gives the value.
    let value = register(&entries(), Extension::Sha256);
    let shorter = list_of(&entries()[1..], Form::Text);
    let refusal = start.advance(&shorter, Some(&value)).unwrap_err();
    assert_eq!(refusal, Refusal::Replay { entries: 8 });
}

#[test]
fn a_changed_field_does_not_recompute() {
    for form in FORMS {
        for at in 0..entries().len() {
            let good = &entries()[at];
            if good.violation {
                continue;
            }
            let written = list_of(std::slice::from_ref(good), form);
            let path = String::from_utf8(good.path.clone()).unwrap();
            let find = written.windows(path.len()).position(|bytes| bytes == path.as_bytes());
            let mut changed = written.clone();
            changed[find.unwrap()] ^= 1;
            let refusal = Progress::new(form, Extension::Sha256).advance(&changed, None);
            assert_eq!(refusal.unwrap_err(), Refusal::TemplateHash { entry: 0 }, "{good:?}");
        }
    }
}

#[test]
fn a_violation_cannot_be_hidden_in_a_changed_hash() {
    let mut all = entries();
    let value = register(&all, Extension::Sha1);
    all[5].violation = false;
    let list = list_of(&all, Form::Text);
    let refusal = Progress::new(Form::Text, Extension::Sha1).advance(&list, Some(&value));
    assert!(matches!(refusal, Err(Refusal::Replay { .. })));
    // Nor can an entry be called a violation so that its fields are not checked.
    let mut all = entries();
    all[1].violation = true;
    let list = list_of(&all, Form::Text);
    let refusal = Progress::new(Form::Text, Extension::Sha1).advance(&list, Some(&value));
    assert!(matches!(refusal, Err(Refusal::Replay { .. })));
}

#[test]
fn what_cannot_be_read_says_which_entry_and_what_of_it() {
    let text = |line: &str| {
        let whole = [list_of(&entries(), Form::Text), line.as_bytes().to_vec()].concat();
        Progress::new(Form::Text, Extension::Sha1).advance(&whole, None).unwrap_err()
    };
    let broken = |field| Refusal::Entry { entry: 9, field };
    let hash = "11".repeat(20);
    assert_eq!(text("10"), broken("the line's end"));
    assert_eq!(text("10\n"), broken("template hash"));
    assert_eq!(text("ten 00\n"), broken("pcr"));
    assert_eq!(
        text(&format!("11 {hash} ima-ng sha1:00 /x\n")),
        Refusal::Register { entry: 9, pcr: 11 }
    );
    assert_eq!(text(&format!("10 {hash}00 ima-ng sha1:00 /x\n")), broken("template hash"));
    assert_eq!(text(&format!("10 {hash} ima-modsig sha1:00 /x\n")), Refusal::Template { entry: 9 });
    assert_eq!(text(&format!("10 {hash} ima-ng sha1:0g /x\n")), broken("digest"));
    assert_eq!(text(&format!("10 {hash} ima-ng sha1 /x\n")), broken("digest"));
    assert_eq!(text(&format!("10 {hash} ima-ng sha1:\n")), broken("digest"));
    assert_eq!(text(&format!("10 {hash} ima-ng sha1: /x\n")), broken("digest"));
    assert_eq!(text(&format!("10 {hash} ima-ng s\u{e4}: /x\n")), broken("digest"));
    let path = "x".repeat(4097);
    assert_eq!(text(&format!("10 {hash} ima-ng sha1:00 {path}\n")), broken("path"));
    assert_eq!(text(&format!("10 {hash} ima-ng sha1:00 /x\n")), Refusal::TemplateHash { entry: 9 });
    let binary = list_of(&entries(), Form::Binary);
    for cut in 1..=file("", 0).binary().len() {
        let refusal = Progress::new(Form::Binary, Extension::Sha1)
            .advance(&binary[..binary.len() - cut], None)
            .unwrap_err();
        assert!(matches!(refusal, Refusal::Entry { entry: 8, .. }), "{cut}: {refusal}");
    }
}

#[test]
fn bounds_are_kept() {
    let start = Progress::new(Form::Text, Extension::Sha1);
    let refusal = start.advance(&vec![b'x'; MAX_PART_BYTES + 1], None).unwrap_err();
    assert_eq!(refusal, Refusal::TooLarge(MAX_PART_BYTES + 1));
    let endless = start.advance(&vec![b'x'; 1 << 20], None).unwrap_err();
    assert_eq!(endless, Refusal::Entry { entry: 0, field: "the line's end" });
    let tiny = Made { digest: vec![1], algorithm: "a", ..file("", 0) }.text(Bank::Sha1);
    let many = tiny.repeat(usize::try_from(MAX_PART_ENTRIES).unwrap() + 1);
    assert_eq!(start.advance(&many, None).unwrap_err(), Refusal::TooManyEntries);
    let most = &many[..many.len() - tiny.len()];
    assert_eq!(start.advance(most, None).unwrap().progress.entries(), MAX_PART_ENTRIES);
}

#[test]
fn a_policy_sees_what_files_nobody_knows() {
    let list = list_of(&entries(), Form::Text);
    let value = register(&entries(), Extension::Sha256);
    let start = Progress::new(Form::Text, Extension::Sha256);
    let digests = |found: &Advance<'_>| -> BTreeSet<String> {
        found.files.iter().map(MeasuredFile::digest_text).collect()
    };
    let mut allow = digests(&start.advance(&list, None).unwrap());
    let (found, _) = verify(&start, &list, Some(&value), Some(&allow));
    assert_eq!(found.worst(), Outcome::Passed);
    assert_eq!(found.claims["ima-entries"], Claim::Number(9));
    assert_eq!(found.claims["ima-violations"], Claim::Number(1));
    assert_eq!(found.claims["ima-unknown-count"], Claim::Number(0));
    assert_eq!(found.claims["ima-unknown-files"], Claim::Texts(BTreeSet::new()));
    let known = format!("sha256:{}", "05".repeat(32));
    assert!(allow.remove(&known));
    let (found, _) = verify(&start, &list, Some(&value), Some(&allow));
    assert_eq!(found.claims["ima-unknown-count"], Claim::Number(1));
    let named = BTreeSet::from([format!("/usr/bin/unsigned {known}")]);
    assert_eq!(found.claims["ima-unknown-files"], Claim::Texts(named));
    // Without a list of what is known nothing is claimed of it.
    let (found, _) = verify(&start, &list, None, None);
    assert_eq!(found.outcome("ima replay"), Outcome::NotChecked);
    assert!(!found.claims.contains_key("ima-unknown-files"));
    let (found, advance) = verify(&start, &list, Some(&[1; 32]), Some(&allow));
    assert_eq!(found.outcome("ima replay"), Outcome::Failed);
    assert!(advance.is_none() && found.claims.is_empty());
}

#[test]
fn many_unknown_files_are_counted_and_some_are_named() {
    let many: Vec<Made> = (0..200).map(|n| file(&format!("/tmp/{n}"), 1)).collect();
    let list = list_of(&many, Form::Text);
    let start = Progress::new(Form::Text, Extension::Sha1);
    let unknown = start.advance(&list, None).unwrap().unknown_files(&BTreeSet::new());
    assert_eq!((unknown.count, unknown.named.len()), (200, MAX_NAMED_FILES));
}

/// Only the kernel's first entry is the boot aggregate: a file of that name is a file.
#[test]
fn a_file_called_boot_aggregate_is_a_file() {
    let list = list_of(&[file("boot_aggregate", 1), file("boot_aggregate", 2)], Form::Text);
    let start = Progress::new(Form::Text, Extension::Sha1);
    let files = start.advance(&list, None).unwrap().files;
    assert_eq!(files.len(), 1);
    assert_eq!(files[0].digest, [2; 32]);
}

#[test]
fn kept_progress_of_another_bank_is_refused() {
    let progress = Progress::new(Form::Text, Extension::Sha1);
    let kept = serde_json::to_string(&progress).unwrap();
    for wrong in [kept.replace("\"sha1\"", "\"sha256\""), kept.replace("\"00", "\"x0")] {
        assert_ne!(wrong, kept);
        assert!(serde_json::from_str::<Progress>(&wrong).is_err(), "{wrong}");
    }
}

fn real_list() -> Option<Vec<u8>> {
    let root = std::env::var_os("DISTOS_TESTDATA").map_or_else(
        || std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/testdata"),
        Into::into,
    );
    let path = root.join("attestation/ima/ascii_runtime_measurements");
    match std::fs::read(&path) {
        Ok(bytes) => Some(bytes),
        // The evidence stands beside the checkout, not in it. Whoever names its folder wants it
        // tested; whoever has only the checkout is told that it was not.
        Err(error) if std::env::var_os("DISTOS_TESTDATA").is_none() => {
            eprintln!("NOT TESTED: {}: {error}; DISTOS_TESTDATA names its folder", path.display());
            None
        }
        Err(error) => panic!("{}: {error}", path.display()),
    }
}

#[test]
fn a_real_list_recomputes_and_replays_in_parts() {
    let Some(list) = real_list() else { return };
    let whole = Progress::new(Form::Text, Extension::Sha1).advance(&list, None).unwrap();
    assert_eq!(whole.progress.entries(), 826);
    assert_eq!(whole.progress.violations(), 0);
    assert_eq!(whole.files.len(), 825);
    assert_eq!((whole.files[0].path, whole.files[0].algorithm), (&b"/init"[..], "sha1"));
    let value = whole.progress.value().as_bytes();
    let mut progress = Progress::new(Form::Text, Extension::Sha1);
    for lines in [100, 300, 825] {
        let ends = list.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
        let end = ends.map(|(at, _)| at + 1).nth(lines - 1).unwrap();
        let part = &list[usize::try_from(progress.offset()).unwrap()..end];
        progress = progress.advance(part, None).unwrap().progress;
        assert_eq!(progress.entries(), lines as u64);
    }
    let last = progress.rest_of(&list).unwrap();
    assert_eq!(progress.advance(last, Some(value)).unwrap().progress, whole.progress);
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        for form in FORMS {
            let start = Progress::new(form, Extension::Sha256Padded);
            let _ = start.advance(&bytes, Some(&[1; 32]));
            let _ = start.advance(&[list_of(&entries(), form), bytes.clone()].concat(), None);
        }
    }

    /// Whatever byte is changed: the list is refused, or its files are what they were.
    #[test]
    fn no_changed_byte_is_vouched_for(
        at in any::<prop::sample::Index>(), flip in 1u8.., binary in any::<bool>()
    ) {
        let form = FORMS[usize::from(binary)];
        let list = list_of(&entries(), form);
        let value = register(&entries(), Extension::Sha256);
        let start = Progress::new(form, Extension::Sha256);
        let before = start.advance(&list, Some(&value)).unwrap();
        let mut changed = list.clone();
        changed[at.index(list.len())] ^= flip;
        if let Ok(after) = start.advance(&changed, Some(&value)) {
            // A violation's fields are covered by nothing.
            let known = |files: &[MeasuredFile<'_>]| -> Vec<String> {
                files.iter().filter(|file| !file.violation).map(ToString::to_string).collect()
            };
            prop_assert_eq!(known(&after.files), known(&before.files));
            prop_assert_eq!(after.progress.violations(), before.progress.violations());
        }
    }

    #[test]
    fn no_changed_byte_of_a_real_list_is_vouched_for(at in any::<prop::sample::Index>(), flip in 1u8..) {
        if let Some(list) = real_list() {
            let start = Progress::new(Form::Text, Extension::Sha1);
            let before = start.advance(&list, None).unwrap();
            let mut changed = list.clone();
            changed[at.index(list.len())] ^= flip;
            if let Ok(after) = start.advance(&changed, Some(before.progress.value().as_bytes())) {
                let text = |advance: &Advance<'_>| -> Vec<String> {
                    advance.files.iter().map(ToString::to_string).collect()
                };
                prop_assert_eq!(text(&after), text(&before));
            }
        }
    }
}
