//! Appraisal policies: Cedar in a text file that somebody has signed.
//!
//! ```text
//! // distos-policy: NAME
//! // version: NUMBER
//!
//! @id("hardware-tpm")
//! permit (principal, action == Action::"affirm", resource is Tpm)
//! when { resource has tpm && resource.tpm == "hardware" };
//! ```
//!
//! The signature is a [`DetachedSignature`] over a [`POLICY`], beside the file, and is checked before anything of the
//! file is looked at. The version is a number that never goes back. Everything else is Cedar, and every policy is
//! validated strictly against the schema in `appraisal.cedarschema`, which says of which devices and which claims a
//! policy may speak.
//!
//! Annotations: `@id` is the policy's name, which results give as a reason; each policy has one. On a policy that
//! permits, `@accepts("software-tpm")` accepts a TPM that is not known to be hardware, and
//! `@unchecked("nonce, golden values")` puts up with checks of these names for which there was nothing to check
//! against. No other annotation is taken.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use cedar_policy::{
    ActionConstraint, Effect, EntityUid, Policy, PolicyId, PolicySet, ValidationMode,
};
use distos_abi::{Fault, HolderKey};
use distos_identity::DetachedSignature;
use sha2::{Digest, Sha256};

use crate::kind::{Kind, LANGUAGE};

/// What a policy is to whoever signs it.
pub const POLICY: &str = "policy";
/// The longest policy file, in bytes.
pub const MAX_POLICY_BYTES: usize = 256 << 10;
/// How many policies a file may have.
pub const MAX_POLICIES: usize = 256;
/// How deep brackets may stand in one another, and how many words and signs one policy may have: strings and commas are
/// not counted, so lists may be long. Cedar's parser overflows its stack on what is nested too deep. Where the stack
/// runs short its validator stops, and says nothing: it would pass what it has not looked at. Within these bounds a
/// stack of 2 MiB is enough for both.
const MAX_NESTING: usize = 32;
const MAX_WORDS: usize = 1000;
/// The longest name of a file or of a policy in it, in bytes.
const MAX_NAME_BYTES: usize = 64;
const NAME: &str = "// distos-policy: ";
const VERSION: &str = "// version: ";
/// What a policy accepts by name that takes a TPM which is not known to be hardware.
pub(crate) const SOFTWARE_TPM: &str = "software-tpm";

/// Which policy file it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edition {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: u64,
    /// SHA-256 of its bytes.
    pub digest: [u8; 32],
}

impl fmt::Display for Edition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.version)
    }
}

impl Edition {
    /// Whether this one may stand in the place of an earlier one: it is of the same name, and newer or the very same.
    /// [`Fault::Unauthenticated`] if not: what was signed once and has been replaced must not come back.
    pub fn accepts(&self, earlier: &Edition) -> Result<(), Fault> {
        if self == earlier || (self.name == earlier.name && self.version > earlier.version) {
            return Ok(());
        }
        Err(Fault::Unauthenticated(format!(
            "the policy {self} cannot follow {earlier}: give it that name and a higher version"
        )))
    }
}

/// What one policy puts up with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Terms {
    pub(crate) software_tpm: bool,
    pub(crate) unchecked: BTreeSet<String>,
}

/// What a policy decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Action {
    Affirm,
    Warn,
    Admit,
}

impl Action {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Action::Affirm => "affirm",
            Action::Warn => "warn",
            Action::Admit => "admit",
        }
    }
}

/// A policy file that was read.
pub struct Policies {
    edition: Edition,
    signer: Option<HolderKey>,
    pub(crate) set: PolicySet,
    terms: BTreeMap<PolicyId, Terms>,
    /// The kinds of which a policy may say something good.
    kinds: BTreeSet<Kind>,
}

impl Policies {
    /// Reads a file and the text of the signature beside it, if one of these keys signed it.
    ///
    /// [`Fault::Unauthenticated`] if none of them did. [`Fault::Malformed`] if it is too long, or is no policy: with
    /// what is wrong, in the validator's words.
    pub fn open(file: &[u8], signature: &str, trusted: &[HolderKey]) -> Result<Policies, Fault> {
        // Before it is hashed.
        check_length(file)?;
        let signer = DetachedSignature::parse(POLICY, signature)?.verify(file)?;
        if !trusted.contains(&signer) {
            let why = format!("the policy is signed by {signer}, and policies of others are taken");
            return Err(Fault::Unauthenticated(why));
        }
        Ok(Policies { signer: Some(signer), ..Policies::unsigned(file)? })
    }

    /// Reads a file that nobody has signed, for whoever has chosen it: its author, or an auditor who looks at
    /// evidence. No result is made by it.
    ///
    /// [`Fault::Malformed`] as [`Policies::open`].
    pub fn unsigned(file: &[u8]) -> Result<Policies, Fault> {
        check_length(file)?;
        let text = std::str::from_utf8(file)
            .map_err(|_| Fault::malformed("a policy is text in UTF-8, and this is not"))?;
        let (name, version) = header(text)?;
        let edition = Edition { name, version, digest: Sha256::digest(file).into() };
        check_depth(text)?;
        let parsed: PolicySet = text.parse().map_err(|error: cedar_policy::ParseErrors| {
            let lines = error.iter().map(|one| one.to_string()).collect::<Vec<_>>();
            Fault::malformed(format!("no policies in Cedar: {}", lines.join("; ")))
        })?;
        let mut policies = Policies {
            edition,
            signer: None,
            set: PolicySet::new(),
            terms: BTreeMap::new(),
            kinds: BTreeSet::new(),
        };
        if parsed.templates().next().is_some() {
            return Err(Fault::malformed("a policy has a slot: name what it is about"));
        }
        let count = parsed.policies().count();
        if !(1..=MAX_POLICIES).contains(&count) {
            return Err(Fault::malformed(format!(
                "a file has 1 to {MAX_POLICIES} policies, and this one has {count}"
            )));
        }
        for policy in parsed.policies() {
            policies.add(policy)?;
        }
        let validated = LANGUAGE.validator.validate(&policies.set, ValidationMode::default());
        // What is warned of never applies, or reads as something else than it is.
        let errors = validated.validation_errors().map(|error| error.to_string());
        let warnings = validated.validation_warnings().map(|warning| warning.to_string());
        let mut wrong: Vec<String> = errors.chain(warnings).collect();
        if wrong.is_empty() {
            return Ok(policies);
        }
        wrong.sort();
        Err(Fault::malformed(format!("the policies are not valid: {}", wrong.join("; "))))
    }

    /// Which file it is.
    pub fn edition(&self) -> &Edition {
        &self.edition
    }

    /// Who signed it; `None` if it was read without a signature.
    pub fn signer(&self) -> Option<HolderKey> {
        self.signer
    }

    /// Whether a policy may say something good of this kind.
    pub(crate) fn speak_of(&self, kind: Kind) -> bool {
        self.kinds.contains(&kind)
    }

    /// What the policy of this name puts up with.
    pub(crate) fn terms(&self, id: &PolicyId) -> &Terms {
        &self.terms[id]
    }

    fn add(&mut self, policy: &Policy) -> Result<(), Fault> {
        let id = policy.annotation("id").filter(|id| is_name(id)).ok_or_else(|| {
            let what = "each policy has an @id of lower-case letters, digits and \"-\"";
            Fault::malformed(format!("{what}: give one to {}", in_one_line(policy)))
        })?;
        let bad = |what: String| Fault::malformed(format!("policy {id}: {what}"));
        let mut terms = Terms::default();
        for (annotation, value) in policy.annotations() {
            if annotation == "id" {
                continue;
            }
            if policy.effect() != Effect::Permit || decides(policy, Action::Admit) {
                let what = format!("@{annotation} is for what permits to affirm or warn");
                return Err(bad(what));
            }
            match annotation {
                "accepts" if value == SOFTWARE_TPM => terms.software_tpm = true,
                "accepts" => return Err(bad(format!("\"{value}\" is nothing to accept by name"))),
                "unchecked" => {
                    terms.unchecked = value.split(',').map(|name| name.trim().to_owned()).collect();
                }
                other => return Err(bad(format!("@{other} is no annotation here"))),
            }
        }
        let id = PolicyId::new(id);
        if policy.effect() == Effect::Permit {
            let envs: Vec<_> = policy.get_valid_request_envs(&LANGUAGE.schema).collect();
            let speaks =
                |kind: &Kind| envs.iter().any(|env| env.resource().to_string() == kind.entity());
            self.kinds.extend(Kind::ALL.into_iter().filter(speaks));
        }
        self.set
            .add(policy.new_id(id.clone()))
            .map_err(|_| Fault::malformed(format!("two policies have the @id {id}")))?;
        self.terms.insert(id, terms);
        Ok(())
    }
}

impl fmt::Debug for Policies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Policies({}, {:?})", self.edition, self.signer)
    }
}

/// Whether a policy decides by name about this action, and not about all of them.
fn decides(policy: &Policy, action: Action) -> bool {
    let is = |uid: &EntityUid| uid.id().unescaped() == action.name();
    match policy.action_constraint() {
        ActionConstraint::Any => false,
        ActionConstraint::In(several) => several.iter().any(is),
        ActionConstraint::Eq(one) => is(&one),
    }
}

fn check_length(file: &[u8]) -> Result<(), Fault> {
    if file.len() <= MAX_POLICY_BYTES {
        return Ok(());
    }
    Err(Fault::malformed(format!("a policy file has at most {MAX_POLICY_BYTES} bytes")))
}

/// Refuses what would be too deep for Cedar. It reads strings and comments as Cedar does, and everything else as signs.
fn check_depth(text: &str) -> Result<(), Fault> {
    let (mut nesting, mut words) = (0usize, 0usize);
    let mut chars = text.chars().peekable();
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    while let Some(c) = chars.next() {
        match c {
            '/' if chars.peek() == Some(&'/') => {
                while chars.next_if(|c| !['\n', '\r'].contains(c)).is_some() {}
            }
            '"' => {
                while let Some(c) = chars.next().filter(|c| *c != '"') {
                    if c == '\\' {
                        chars.next();
                    }
                }
            }
            ';' => (nesting, words) = (0, 0),
            ',' => {}
            c if c.is_whitespace() => {}
            c => {
                words += 1;
                match c {
                    '(' | '[' | '{' => nesting += 1,
                    ')' | ']' | '}' => nesting = nesting.saturating_sub(1),
                    c if is_word(c) => while chars.next_if(|c| is_word(*c)).is_some() {},
                    _ => {}
                }
            }
        }
        if nesting > MAX_NESTING || words > MAX_WORDS {
            return Err(Fault::malformed(format!(
                "a policy has at most {MAX_NESTING} brackets in one another and {MAX_WORDS} words \
                 and signs: make several of it"
            )));
        }
    }
    Ok(())
}

/// The name and the version in the first two lines.
fn header(text: &str) -> Result<(String, u64), Fault> {
    let mut lines = text.lines();
    let mut field = |key: &str, number: u32| {
        let found = lines.next().and_then(|line| line.strip_prefix(key)).map(str::trim_end);
        found.ok_or_else(|| Fault::malformed(format!("line {number} is not \"{key}…\"")))
    };
    let (name, version) = (field(NAME, 1)?, field(VERSION, 2)?);
    if !is_name(name) {
        return Err(Fault::malformed(format!(
            "line 1: a name is 1 to {MAX_NAME_BYTES} lower-case letters, digits and \"-\""
        )));
    }
    // One way to write a number.
    let number = version.parse().ok().filter(|number: &u64| number.to_string() == version);
    let number = number.filter(|number| *number > 0);
    let number = number.ok_or_else(|| Fault::malformed("line 2: a version is 1 or more"))?;
    Ok((name.to_owned(), number))
}

/// Whether this is the name of a policy, or of a submodule.
pub(crate) fn is_name(name: &str) -> bool {
    let fits = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    (1..=MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(fits)
}

/// The beginning of a policy, for whoever has to find it.
fn in_one_line(policy: &Policy) -> String {
    let text = policy.to_string();
    let line: Vec<&str> = text.split_whitespace().collect();
    line.join(" ").chars().take(120).collect()
}

#[cfg(test)]
mod tests {
    use distos_types::HolderSecret;

    use super::*;

    const FILE: &str = r#"// distos-policy: test
// version: 7

@id("a")
permit (principal, action == Action::"affirm", resource is Tpm)
when { resource.passed.contains("signature") };
"#;

    fn secret(seed: u8) -> HolderSecret {
        HolderSecret::from_seed([seed; 32])
    }

    fn signature(file: &[u8]) -> String {
        DetachedSignature::sign(POLICY, file, &secret(1)).to_text()
    }

    fn refused(file: &str) -> String {
        match Policies::unsigned(file.as_bytes()) {
            Err(Fault::Malformed(why)) => why,
            other => panic!("{:.300}: {other:?}", file),
        }
    }

    /// The file with these policies in the place of its own.
    fn of(policies: &str) -> String {
        format!("// distos-policy: test\n// version: 7\n{policies}")
    }

    #[test]
    fn a_signed_policy_is_read_and_names_itself_and_its_signer() {
        let (file, key) = (FILE.as_bytes(), secret(1).key());
        let policies = Policies::open(file, &signature(file), &[secret(2).key(), key]).unwrap();
        assert_eq!(policies.signer(), Some(key));
        let edition = policies.edition();
        assert_eq!(edition.to_string(), "test@7");
        assert_eq!(edition.digest[..], Sha256::digest(file)[..]);
        assert!(policies.speak_of(Kind::Tpm) && !policies.speak_of(Kind::Snp));
        assert_eq!(Policies::unsigned(file).unwrap().signer(), None);
    }

    #[test]
    fn nothing_that_was_not_signed_as_it_is_by_whom_is_trusted_is_read() {
        let (file, key) = (FILE.as_bytes(), secret(1).key());
        let by = signature(file);
        for trusted in [&[][..], &[secret(2).key()]] {
            let fault = Policies::open(file, &by, trusted).unwrap_err();
            assert_eq!(fault.code(), 22, "{fault}");
        }
        for at in 0..file.len() {
            for bit in [1, 0x20, 0x80] {
                let mut changed = file.to_vec();
                changed[at] ^= bit;
                let fault = Policies::open(&changed, &by, &[key]).unwrap_err();
                assert_eq!(fault.code(), 22, "byte {at}: {fault}");
            }
        }
        for at in 0..by.trim_end().len() {
            let mut changed = by.clone().into_bytes();
            changed[at] ^= 1;
            let Ok(changed) = String::from_utf8(changed) else { continue };
            assert!(Policies::open(file, &changed, &[key]).is_err(), "byte {at}: {changed}");
        }
        // An image that says the same.
        let image = DetachedSignature::sign("image", file, &secret(1)).to_text();
        assert!(Policies::open(file, &image, &[key]).is_err());
    }

    /// Whoever can put a file where it is read must not reach the parser with it.
    #[test]
    fn what_nobody_trusted_has_signed_is_not_parsed() {
        let broken = b"\xff no policy".as_slice();
        let fault = Policies::open(broken, &signature(FILE.as_bytes()), &[secret(1).key()]);
        assert_eq!(fault.unwrap_err().code(), 22);
        let fault = Policies::open(broken, &signature(broken), &[secret(1).key()]);
        assert_eq!(fault.unwrap_err().code(), 16);
    }

    #[test]
    fn an_earlier_version_does_not_come_back() {
        let edition = |text: &str| Policies::unsigned(text.as_bytes()).unwrap().edition().clone();
        let seven = edition(FILE);
        let eight = edition(&FILE.replace(": 7", ": 8"));
        assert_eq!(eight.accepts(&seven), Ok(()));
        assert_eq!(seven.accepts(&seven), Ok(()));
        assert_eq!(seven.accepts(&eight).unwrap_err().code(), 22);
        let other_seven = edition(&FILE.replace("signature", "nonce"));
        assert!(other_seven.accepts(&seven).is_err(), "one version is one file");
        assert!(edition(&FILE.replace(": test", ": other")).accepts(&seven).is_err());
    }

    #[test]
    fn a_file_without_name_or_version_is_refused() {
        for (from, to, says) in [
            ("// distos-policy: test\n", "", "line 1"),
            (": test", ": Test", "line 1"),
            (": test", ": ", "line 1"),
            ("// version: 7\n", "", "line 2"),
            (": 7", ": 0", "line 2"),
            (": 7", ": 07", "line 2"),
            (": 7", ": +7", "line 2"),
            (": 7", ": 99999999999999999999", "line 2"),
        ] {
            let why = refused(&FILE.replacen(from, to, 1));
            assert!(why.contains(says), "{to}: {why}");
        }
        assert!(Policies::unsigned(FILE.replace('\n', "\r\n").as_bytes()).is_ok());
    }

    #[test]
    fn a_policy_about_what_is_not_known_is_refused_in_the_validators_words() {
        let when = |what: &str| {
            of(&format!(
                "@id(\"a\") permit (principal, action == Action::\"affirm\", resource is Tpm) \
                 when {{ {what} }};"
            ))
        };
        assert!(
            Policies::unsigned(when("resource has tpm && resource.tpm == \"x\"").as_bytes())
                .is_ok()
        );
        for (what, says) in [
            // It may be absent.
            ("resource.tpm == \"hardware\"", "tpm"),
            ("resource.confidential_mode", "confidential_mode"),
            ("resource has confidential_mode && resource.confidential_mode", "impossible"),
            ("resource has tpm && resource.tpm == 1", "type"),
            ("resource has reset_count && resource.reset_count == \"1\"", "type"),
            ("false", "impossible"),
            ("resource is Gpu", "Gpu"),
        ] {
            let why = refused(&when(what));
            assert!(why.contains(says), "{what}: {why}");
        }
        for (policy, says) in [
            (r#"@id("a") permit (principal, action == Action::"trust", resource);"#, "trust"),
            (r#"@id("a") permit (principal, action, resource is Gpu);"#, "Gpu"),
            (r#"@id("a") permit (principal == User::"x", action, resource);"#, "User"),
            (r#"@id("a") permit (principal == ?principal, action, resource);"#, "slot"),
            (r#"@id("a") permit (principal, action, resource)"#, "Cedar"),
            ("", "has 0"),
        ] {
            let why = refused(&of(policy));
            assert!(why.contains(says), "{policy}: {why}");
        }
    }

    #[test]
    fn a_mistyped_annotation_is_refused_and_not_passed_over() {
        let permits = |annotations: &str| {
            of(&format!("{annotations} permit (principal, action, resource is Tpm);"))
        };
        let good = permits(r#"@id("a") @accepts("software-tpm") @unchecked("nonce, pcrs")"#);
        let policies = Policies::unsigned(good.as_bytes()).unwrap();
        let terms = policies.terms(&PolicyId::new("a"));
        assert!(terms.software_tpm);
        assert_eq!(terms.unchecked, BTreeSet::from(["nonce".to_owned(), "pcrs".to_owned()]));
        for annotations in [
            "",
            r#"@id("")"#,
            r#"@id("A b")"#,
            r#"@id("a") @accept("software-tpm")"#,
            r#"@id("a") @accepts("software tpm")"#,
            r#"@id("a") @accepts"#,
        ] {
            refused(&permits(annotations));
        }
        refused(&good.replace("permit", "forbid"));
        refused(&of(
            r#"@id("a") @unchecked("x") permit (principal, action == Action::"admit", resource);"#,
        ));
        let twice = permits(r#"@id("a")"#);
        let twice = format!("{twice}{}", twice.lines().nth(2).unwrap());
        assert!(refused(&twice).contains("@id a"));
    }

    #[test]
    fn a_file_is_bounded_in_bytes_and_in_policies() {
        let policy = |number: usize| {
            format!("@id(\"p{number}\") permit (principal, action, resource is Tpm);\n")
        };
        let several = |count: usize| of(&(0..count).map(policy).collect::<String>());
        assert!(Policies::unsigned(several(MAX_POLICIES).as_bytes()).is_ok());
        assert!(refused(&several(MAX_POLICIES + 1)).contains("256"));
        let long = format!("{FILE}{}", " ".repeat(MAX_POLICY_BYTES - FILE.len()));
        assert!(Policies::unsigned(long.as_bytes()).is_ok());
        assert!(Policies::open(format!("{long} ").as_bytes(), "", &[]).is_err());
    }

    /// Cedar ends a comment at a carriage return, too: behind it brackets count again.
    #[test]
    fn nothing_deep_hides_in_what_only_looks_like_a_comment() {
        for end in ["\n", "\r", "\r\n"] {
            let deep = format!("{FILE}// see below{end}{}", "(".repeat(MAX_NESTING + 1));
            let why = refused(&deep);
            assert!(why.contains("brackets"), "{end:?}: {why}");
        }
    }

    /// Cedar's validator passes what its stack is too short for. A test's thread has 2 MiB.
    #[test]
    fn what_is_as_deep_as_a_policy_may_be_is_still_validated() {
        let wrong = "resource.passed.contains(1)";
        // Each way to nest, and how often it fits.
        for (before, after, times, says) in [
            ("(", ")", MAX_NESTING - 3, "type"),
            ("[", "].contains(true)", MAX_NESTING - 3, "type"),
            ("!(", ")", MAX_NESTING - 3, "type"),
            ("if 1 < 2 then true else ", "", 130, "type"),
            ("", " && true", 300, "type"),
            ("", " || true", 300, "type"),
            ("true && ", "", 300, "type"),
            ("", ".contains(1)", 190, "type"),
            ("resource.passed.containsAny([\"a\"]) == ", "", 0, "type"),
        ] {
            let nested = format!("{}{wrong}{}", before.repeat(times), after.repeat(times));
            let why = refused(&of(&format!(
                "@id(\"a\") permit (principal, action, resource is Tpm) when {{ {nested} }};"
            )));
            assert!(why.contains("not valid") && why.contains(says), "{before} {after}: {why}");
        }
        for deep in [".passed".repeat(450), format!(".passed{}", " + 1".repeat(450))] {
            let why = refused(&of(&format!(
                "@id(\"a\") permit (principal, action, resource is Tpm) \
                 when {{ resource{deep} == 1 }};"
            )));
            assert!(why.contains("not valid"), "{why}");
        }
    }

    #[test]
    fn what_is_too_deep_for_cedar_is_refused_before_it_is_parsed() {
        for (before, after) in [
            ("(", ")"),
            ("[", "]"),
            ("{a:", "}"),
            ("if (", ") then true else false"),
            ("if true then true else ", ""),
            ("", ".a"),
            ("", ".contains(1)"),
            ("", "[\"a\"]"),
            ("", " && true"),
            ("", " has a"),
            ("-", ""),
            ("!", ""),
            ("/*", "*/"),
        ] {
            for times in [1_100, 8_000] {
                let nested = format!("{}true{}", before.repeat(times), after.repeat(times));
                let why = refused(&of(&format!(
                    "@id(\"a\") permit (principal, action, resource is Tpm) when {{ {nested} }};"
                )));
                assert!(why.contains("make several"), "{before} {after} {times}: {why:.300}");
            }
        }
        // What is in strings and comments is none of it, and lists are as long as the file.
        let list: Vec<String> = (0..2_000).map(|n| format!("\"(((([[{n}\\\"((;\"")).collect();
        let text = of(&format!(
            "// {}\n@id(\"a\") permit (principal, action, resource is Tpm) \
             when {{ resource has tpm && [{}].contains(resource.tpm) }};",
            "(".repeat(100),
            list.join(",")
        ));
        let read = Policies::unsigned(text.as_bytes());
        assert!(read.is_ok(), "{read:?}");
    }
}
